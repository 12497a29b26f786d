"""What is made goes to those who download it: shown first, uploaded on request, only what differs."""
