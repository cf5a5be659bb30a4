"""The archive: ingest once, read many times.

In: ``sources`` and ``packets`` (alerts), ``tables`` (light curves, spectra) → ``ingest`` (``ingest_packets``,
``ingest_tables``, ``stage``), which sorts out of core (``spill``), decides between packets of one candid
(``lookup``, ``resolve``), stitches light curves (``stitch``), finds the objects of spectra (``matching``) and
writes ``parts`` (``build``) and a ``snapshot``. Care: ``compact``, ``gc``, ``verify``.
Out: ``read``, ``objects``.
"""
