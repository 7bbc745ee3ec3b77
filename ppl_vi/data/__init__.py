"""Data as a fit takes them: the arguments of the programs, whole or in batches of rows."""
