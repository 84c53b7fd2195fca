"""Many runs as one: a file says which, a database knows which are done, and processes or Ray carry them out."""
