"""Schema of the section `report`."""

from stages.settings.section import Count, Section


class Report(Section):
    """How much the report page shows, and in how many files."""

    num_images: Count
    regions_per_cluster: Count
    num_clusters: Count
    views_per_cluster: Count
    single_file: bool
