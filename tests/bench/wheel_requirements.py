"""Prints the requirements of a wheel, less extras and the packages named: wheel_requirements.py WHEEL [NAME]..."""

import email
import re
import sys
import zipfile

wheel, *left_out = sys.argv[1:]
with zipfile.ZipFile(wheel) as archive:
    name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
    metadata = email.message_from_bytes(archive.read(name))
for requirement in metadata.get_all("Requires-Dist", []):
    package = re.match(r"[\w.-]+", requirement).group()
    if package not in left_out and "extra ==" not in requirement:
        print(requirement)
