"""What lies in a store: listed, held against its sums, copied, removed."""
