"""What a crash leaves behind in a repository, how to tell, and what to do about it."""
