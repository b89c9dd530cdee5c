"""What a record costs in instructions: counted, kept by Python version, compared (`python -m tests.cost`)."""
