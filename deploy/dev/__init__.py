"""What development needs: the toolchain, and real services without containers."""
