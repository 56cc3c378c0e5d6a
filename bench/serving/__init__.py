"""The generated service beside the servers that people would take instead: `make bench`."""
