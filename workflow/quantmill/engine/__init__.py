"""The native libraries behind one small interface; the only home of ctypes."""
