"""What people write: names, tables and settings, and the account of what became of them."""
