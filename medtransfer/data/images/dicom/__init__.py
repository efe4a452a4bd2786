"""DICOM files. No other package imports pydicom."""
