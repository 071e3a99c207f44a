"""Reports: reads the files of finished runs, and writes statistics, tables, figures and pages."""
