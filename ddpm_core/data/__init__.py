"""Raw images in, tar shards out, and the order in which training reads them."""
