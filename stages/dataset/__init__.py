"""Raw data into packed images and label maps, and reading them back."""
