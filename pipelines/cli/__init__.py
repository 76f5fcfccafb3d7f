"""What all commands share: parsing, checks, a user's mistakes in one line, and what is said at the end."""
