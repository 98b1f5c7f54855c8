"""What the papers measure on trained networks: numbers, tables and figures."""
