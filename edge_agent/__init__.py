"""The daemon on a plant gateway: reads machines, filters, compresses, keeps and forwards their readings."""
