"""Writers of ISMRMRD files by the standard's own package."""

import ismrmrd
import numpy as np

from tests.fastmri_files import fft

HEADER = """<?xml version="1.0"?>
<ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD">
<subjectInformation><patientID>{patient}</patientID></subjectInformation>
<measurementInformation><patientPosition>HFS</patientPosition>
<protocolName>t1_tse</protocolName></measurementInformation>
<experimentalConditions><H1resonanceFrequency_Hz>63500000</H1resonanceFrequency_Hz>
</experimentalConditions><encoding>
<encodedSpace><matrixSize><x>{encoded[0]}</x><y>{encoded[1]}</y><z>1</z></matrixSize>
<fieldOfView_mm><x>{field[0]}</x><y>{field[1]}</y><z>5</z></fieldOfView_mm>
</encodedSpace>
<reconSpace><matrixSize><x>{recon[0]}</x><y>{recon[1]}</y><z>1</z></matrixSize>
<fieldOfView_mm><x>{shown[0]}</x><y>{shown[1]}</y><z>5</z></fieldOfView_mm></reconSpace>
<encodingLimits><kspace_encoding_step_1><minimum>0</minimum><maximum>{last}</maximum>
<center>{centre}</center></kspace_encoding_step_1></encodingLimits>
<trajectory>{trajectory}</trajectory></encoding></ismrmrdHeader>"""


def header(**changed):
    """The XML of a scan of 24x10, its readout oversampled twice."""
    values = {
        "patient": "P7",
        "encoded": (24, 10),
        "recon": (12, 10),
        "field": (240, 100),
        "shown": (120, 100),
        "last": 9,
        "centre": 5,
        "trajectory": "cartesian",
    }
    return HEADER.format(**values | changed)


def line(data_CxN, step, flags=(), trajectory=None, **changed):
    """One acquisition, whose centre is the middle sample; `changed` sets fields.

    The trajectory (N, 2) or (N, 3) says where samples off the grid lie.
    """
    data = np.ascontiguousarray(data_CxN, "c8")
    made = ismrmrd.Acquisition.from_array(data, trajectory)
    made.center_sample = data_CxN.shape[1] // 2
    made.sample_time_us = 5.0
    made.idx.kspace_encode_step_1 = step
    for flag in flags:
        made.setFlag(flag)
    for name, value in changed.items():
        target = made.idx if hasattr(made.idx, name) else made
        if isinstance(value, tuple):
            getattr(target, name)[:] = value
        else:
            setattr(target, name, value)
    return made


def lines(kspace_CxHxW, steps=None, flags=(), **changed):
    """Acquisitions of columns; by default of all."""
    steps = range(kspace_CxHxW.shape[-1]) if steps is None else steps
    return [line(kspace_CxHxW[..., n], n, flags, **changed) for n in steps]


def write(path, acquisitions, xml=None):
    dataset = ismrmrd.Dataset(str(path), "dataset", create_if_needed=True)
    dataset.write_xml_header((header() if xml is None else xml).encode())
    for acquisition in acquisitions:
        dataset.append_acquisition(acquisition)
    dataset.close()
    return path


def scan(coils=3, shape=(12, 10), seed=0):
    """Images (C, h, w), and their k-space (C, 2h, w) over twice the rows' field."""
    rng = np.random.default_rng(seed)
    images = (
        rng.normal(size=(2, coils, *shape)).astype("f4").transpose(1, 2, 3, 0).copy()
    )
    images = images.view("c8")[..., 0]
    pad = shape[0] // 2
    wide = np.pad(images, [(0, 0), (pad, shape[0] - pad), (0, 0)])
    return images, fft(wide).astype("c8")
