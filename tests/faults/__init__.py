"""The campaign of faults: kills, full disks, damaged files, hostile input, time limits, two trainings in one folder."""
