"""Export: files for other runtimes, each with a certificate that it answers as its checkpoint does."""
