# Nothing of this module is for Python: the other compiled modules cimport it.
