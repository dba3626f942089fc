"""bgnn-convert: trained binary graph neural networks, as files that stock runtimes run."""
