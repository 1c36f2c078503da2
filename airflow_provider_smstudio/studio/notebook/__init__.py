"""The notebook document: cells, parameters, outputs, and what the package writes into its metadata."""
