"""Reports: a result, a study or a sweep as figures, markdown and HTML."""
