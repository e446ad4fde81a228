"""Data directories as versions have written them: every later version must open them, and find everything."""
