"""The run: plan, run folder, shard task, serial and Ray executors, job submission.

The only package that imports ray, and only where a cluster is touched.
"""
