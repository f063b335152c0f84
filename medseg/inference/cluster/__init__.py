"""The same work as :mod:`medseg.inference.batch`, on the workers of a Dask cluster. Needs the extra ``cluster``.

Only the driving process writes the journal, ``run.json`` and ``results.csv``. It hands out few cases at a time, each
to a named worker, so that it knows which cases are in hand when a worker dies. A worker opens the bundle once, then
reads, computes and writes cases with :func:`medseg.inference.work.work_on`, straight into the shared output folder.
"""
