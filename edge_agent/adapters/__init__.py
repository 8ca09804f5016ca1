"""Protocol adapters: one folder or file each, found through the entry-point group `forebay.adapters`."""
