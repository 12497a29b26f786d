def read_chunks(path, first, count): raise NotImplementedError
