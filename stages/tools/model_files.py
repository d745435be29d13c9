"""Names of the files of a trained model in its folder; torch, which takes seconds to load, is not needed."""

BACKBONE = "backbone.safetensors"
SEGMENTER = "segmenter.safetensors"
CENTROIDS = "pixel_centroids.safetensors"
