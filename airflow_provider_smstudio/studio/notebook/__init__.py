"""The notebook document: cells, parameters, outputs, and the metadata that the package writes."""
