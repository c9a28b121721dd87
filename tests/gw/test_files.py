import h5py
import numpy as np
import pytest

from skycensus.errors import InputError
from skycensus.gw import spin_priors
from skycensus.gw.cosmology import FlatLambdaCDM
from skycensus.gw.files import event_name, read_events, read_injections, read_posterior
from skycensus.gw.injections import Stated

COSMOLOGY = FlatLambdaCDM(67.74, 0.3075)
MASSES = ("mass_1_source", "mass_2_source")
FLAT = {"masses": "uniform-source-components"}


@pytest.fixture
def draws():
    rng = np.random.default_rng(5)
    m1 = rng.uniform(20, 40, 50)
    return {"mass_1_source": m1, "mass_2_source": m1 * rng.uniform(0.5, 1, 50)}


def write_text(path, columns, delimiter=" ", comment=""):
    lines = [comment + delimiter.join(columns)]
    rows = zip(*columns.values(), strict=True)
    lines += [delimiter.join(f"{x:.17g}" for x in row) for row in rows]
    path.write_text("\n".join(lines) + "\n")
    return path


def structured(columns):
    names = list(columns)
    table = np.zeros(len(columns[names[0]]), [(name, float) for name in names])
    for name in names:
        table[name] = columns[name]
    return table


# ---- layouts -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "delimiter", "comment"),
    [("a.dat", " ", ""), ("a.txt", "\t", "# "), ("a.csv", ",", ""), ("a.dat", "  ", "#")],
)
def test_text(tmp_path, draws, name, delimiter, comment):
    read = read_posterior(write_text(tmp_path / name, draws, delimiter, comment))
    assert set(read) == set(draws)
    for key, column in draws.items():
        np.testing.assert_array_equal(read[key], column)


def test_columns_of_words_are_left_out(tmp_path):
    (tmp_path / "a.csv").write_text("m1_source,waveform,q\n30,XPHM,0.5\n31,XPHM,0.6\n")
    read = read_posterior(tmp_path / "a.csv")
    np.testing.assert_array_equal(read["mass_1_source"], [30, 31])
    assert set(read) == {"mass_1_source", "mass_ratio"}


def test_parquet(tmp_path, draws):
    pa = pytest.importorskip("pyarrow", reason="absent: pyarrow")
    import pyarrow.parquet as pq

    pq.write_table(pa.table(draws | {"name": ["x"] * 50}), tmp_path / "a.parquet")
    read = read_posterior(tmp_path / "a.parquet")
    np.testing.assert_array_equal(read["mass_1_source"], draws["mass_1_source"])
    (tmp_path / "b.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:-200])
    with pytest.raises(InputError, match="cut short"):
        read_posterior(tmp_path / "b.parquet")


def test_pycbc(tmp_path):
    ogc = {"mass1": [36.0], "mass2": [30.0], "distance": [400.0], "spin1_polar": [0.3]}
    for name, more, expected in [
        ("2-ogc", {"comoving_volume": [3e8]}, "mass_1_source"),
        ("pycbc", {}, "mass_1"),
    ]:
        with h5py.File(tmp_path / f"{name}.hdf", "w") as file:
            for key, column in (ogc | more).items():
                file[f"samples/{key}"] = np.array(column)
        read = read_posterior(tmp_path / f"{name}.hdf")
        assert read[expected] == 36.0
        assert read["luminosity_distance"] == 400.0
        assert read["tilt_1"] == 0.3
    with h5py.File(tmp_path / "3-ogc.hdf", "w") as file:
        file["samples/srcmass1"] = np.array([33.0])
        file["samples/mass1"] = np.array([36.0])
    read = read_posterior(tmp_path / "3-ogc.hdf")
    assert (read["mass_1_source"], read["mass_1"]) == (33.0, 36.0)


def test_pesummary(tmp_path, draws):
    path = tmp_path / "IGWN-GWTC3p0-v1-GW200129_065458_PEDataRelease_mixed_cosmo.h5"
    other = {name: 2 * column for name, column in draws.items()}
    with h5py.File(path, "w") as file:
        file["C01:IMRPhenomXPHM/posterior_samples"] = structured(other)
        file["C01:Mixed/posterior_samples"] = structured(draws)
        file["version/pesummary"] = "0.13"
    np.testing.assert_array_equal(read_posterior(path)["mass_1_source"], draws["mass_1_source"])
    chosen = read_posterior(path, group="C01:IMRPhenomXPHM")
    np.testing.assert_array_equal(chosen["mass_1_source"], other["mass_1_source"])
    with pytest.raises(InputError, match="did you mean 'C01:Mixed'"):
        read_posterior(path, group="C01:Mixd")
    assert event_name(path) == "GW200129_065458"


@pytest.mark.parametrize("preferred", ["C00:Mixed", "C00:Mixed+XO4a"])
def test_the_mixed_waveforms_of_gwtc_4_are_preferred(tmp_path, draws, preferred):
    path = tmp_path / "IGWN-GWTC4p0-0f954158d_720-GW230601_224134-combined_PEDataRelease.hdf5"
    with h5py.File(path, "w") as file:
        file["C00:IMRPhenomXPHM-SpinTaylor/posterior_samples"] = structured(
            {name: 2 * column for name, column in draws.items()}
        )
        file[f"{preferred}/posterior_samples"] = structured(draws)
    np.testing.assert_array_equal(read_posterior(path)["mass_1_source"], draws["mass_1_source"])
    assert event_name(path) == "GW230601_224134"


def test_pesummary_without_a_preferred_waveform(tmp_path, draws):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["A/posterior_samples"] = structured(draws)
        file["B/posterior_samples"] = structured(draws)
    with pytest.raises(InputError, match=r"\['A', 'B'\].*group"):
        read_posterior(tmp_path / "a.h5")


def test_older_pesummary(tmp_path, draws):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        group = file.create_group("posterior_samples/PublicationSamples")
        group["parameter_names"] = [name.encode() for name in draws]
        group["samples"] = np.stack(list(draws.values()), axis=-1)
    read = read_posterior(tmp_path / "a.h5")
    np.testing.assert_array_equal(read["mass_2_source"], draws["mass_2_source"])


def test_gwtc_1(tmp_path):
    columns = {
        "luminosity_distance_Mpc": np.full(20, 430.0),
        "m1_detector_frame_Msun": np.full(20, 39.0),
        "m2_detector_frame_Msun": np.full(20, 32.0),
        "spin1": np.full(20, 0.3),
        "spin2": np.full(20, 0.2),
        "costilt1": np.full(20, -0.1),
        "costilt2": np.full(20, 0.4),
    }
    path = tmp_path / "GW150914_GWTC-1.hdf5"
    with h5py.File(path, "w") as file:
        file["Overall_posterior"] = structured(columns)
        file["IMRPhenomPv2_posterior"] = structured({k: 2 * v for k, v in columns.items()})
        file["prior"] = structured(columns)
    parameters = ("mass_1_source", "mass_ratio", "redshift", "chi_eff")
    (event,) = read_events(path, parameters, "GWTC-1", cosmology=COSMOLOGY)
    z = event.draws["redshift"]
    assert event.name == "GW150914"
    np.testing.assert_allclose(COSMOLOGY.luminosity_distance(z), 430.0)
    np.testing.assert_allclose(event.draws["mass_1_source"], 39.0 / (1 + z))
    slope = np.asarray(COSMOLOGY.log_luminosity_distance_slope(z))
    chi_eff = (39 * 0.3 * -0.1 + 32 * 0.2 * 0.4) / 71
    spin = spin_priors.isotropic_chi_eff(chi_eff, 32 / 39, 0.99)
    expected = np.log(39.0 / (1 + z)) + 2 * np.log1p(z) + 2 * np.log(430.0) + slope + np.log(spin)
    np.testing.assert_allclose(event.log_ref, expected, rtol=1e-9)
    assert read_posterior(path, group="IMRPhenomPv2_posterior")["a_1"][0] == 0.6


def test_plain_hdf5_and_own_names(tmp_path, draws):
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        for name, column in draws.items():
            file[name.replace("mass_", "M").replace("_source", "")] = column
    names = {"mass_1_source": "M1", "mass_2_source": "M2"}
    read = read_posterior(tmp_path / "a.hdf5", columns=names)
    np.testing.assert_array_equal(read["mass_2_source"], draws["mass_2_source"])
    with pytest.raises(InputError, match="no column 'm1' to read as 'mass_1_source'"):
        read_posterior(tmp_path / "a.hdf5", columns={"mass_1_source": "m1"})


@pytest.mark.parametrize(
    ("stem", "name"),
    [
        ("H1L1V1-EXTRACT_POSTERIOR_150914_09H_50M_45UTC-0-1", "GW150914_095045"),
        ("GW170817-v3", "GW170817"),
        ("event_07", "event_07"),
    ],
)
def test_event_names(stem, name):
    assert event_name(f"folder/{stem}.hdf") == name


# ---- catalogues ----------------------------------------------------------------------------------


def test_events_and_their_order(tmp_path, draws):
    for name in ("b", "a", "c"):
        write_text(tmp_path / f"{name}.dat", draws)
    events = read_events(f"{tmp_path}/*.dat", MASSES, FLAT)
    assert [event.name for event in events] == ["a", "b", "c"]
    np.testing.assert_array_equal(events[0].log_ref, np.zeros(50))
    assert len(events[0].sha256) == 64
    paths = [tmp_path / "c.dat", f"{tmp_path}/a*"]
    events = read_events(paths, ("mass_1_source", "mass_ratio"), FLAT)
    assert [event.name for event in events] == ["c", "a"]
    np.testing.assert_allclose(events[0].log_ref, np.log(draws["mass_1_source"]))


def test_thinning_depends_on_the_seed_and_the_event_alone(tmp_path, draws):
    for name in ("a", "b"):
        write_text(tmp_path / f"{name}.dat", draws)
    both = read_events(f"{tmp_path}/*.dat", MASSES, FLAT, max_draws=20, seed=1)
    alone = read_events(tmp_path / "b.dat", MASSES, FLAT, max_draws=20, seed=1)
    assert [len(event) for event in both] == [20, 20]
    np.testing.assert_array_equal(both[1].draws["mass_1_source"], alone[0].draws["mass_1_source"])
    other = read_events(tmp_path / "b.dat", MASSES, FLAT, max_draws=20, seed=2)
    assert np.any(other[0].draws["mass_1_source"] != alone[0].draws["mass_1_source"])
    assert not np.array_equal(both[0].draws["mass_1_source"], both[1].draws["mass_1_source"])
    with pytest.raises(InputError, match="give a seed"):
        read_events(tmp_path / "b.dat", MASSES, FLAT, max_draws=20)


def test_invalid_draws_can_be_dropped(tmp_path, draws):
    draws["mass_1_source"][3] = np.nan
    draws["mass_2_source"][7] = -1.0
    path = write_text(tmp_path / "a.dat", draws)
    (event,) = read_events(path, MASSES, FLAT, drop_invalid=True)
    assert (len(event), event.num_dropped) == (48, 2)
    assert np.all(np.isfinite(event.log_ref))


# ---- what bad input gets -------------------------------------------------------------------------


def change(name, index, value):
    def apply(columns):
        columns[name][index] = value
        return columns

    return apply


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (change("mass_1_source", 3, np.nan), "1 of 50 draws .*1 with mass_1_source NaN"),
        (change("mass_2_source", 3, np.inf), "mass_2_source infinite"),
        (change("mass_2_source", 3, -2.0), "mass_2_source not above 0 .*-2"),
        (change("mass_2_source", 3, 90.0), "mass_2_source larger than mass_1_source"),
        (change("redshift", 4, -0.1), "redshift below 0"),
        (change("cos_tilt_1", 5, 1.2), "cos_tilt_1 above 1"),
        (change("a_1", slice(None), 1.5), "50 with a_1 above 1"),
        (lambda c: c | {"mass_1_source": c["mass_1_source"] * 2e30}, "looks like kg"),
    ],
)
def test_bad_draws(tmp_path, draws, spoil, message):
    columns = spoil(
        draws | {"redshift": np.full(50, 0.1), "cos_tilt_1": np.zeros(50), "a_1": np.full(50, 0.1)}
    )
    path = write_text(tmp_path / "a.dat", columns)
    parameters = (*MASSES, "redshift", "cos_tilt_1", "a_1")
    with pytest.raises(InputError, match=message) as caught:
        read_events(path, parameters, "2-OGC", cosmology=COSMOLOGY)
    assert str(path) in str(caught.value)


def test_distances_in_gpc(tmp_path, draws):
    path = write_text(tmp_path / "a.dat", draws | {"luminosity_distance": np.full(50, 0.4)})
    with pytest.raises(InputError, match="expected Mpc, this looks like Gpc"):
        read_events(path, (*MASSES, "redshift"), "2-OGC", cosmology=COSMOLOGY)


def test_missing_files_and_patterns(tmp_path, draws):
    write_text(tmp_path / "a.dat", draws)
    with pytest.raises(InputError, match="no such file"):
        read_events(tmp_path / "b.dat", MASSES, FLAT)
    with pytest.raises(InputError, match=r"no file matches .*\['a.dat'\]"):
        read_events(f"{tmp_path}/*.hdf5", MASSES, FLAT)
    with pytest.raises(InputError, match="there is no folder"):
        read_events(f"{tmp_path}/none/*.hdf5", MASSES, FLAT)
    with pytest.raises(InputError, match="is a folder"):
        read_events(tmp_path, MASSES, FLAT)
    with pytest.raises(InputError, match=r"no reader for '\.xyz'"):
        read_posterior(write_text(tmp_path / "a.xyz", draws))
    with pytest.raises(InputError, match="no posterior files"):
        read_events([], MASSES, FLAT)


def test_unreadable_files(tmp_path, draws):
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        file["x"] = np.zeros(10000)
    whole = (tmp_path / "a.hdf5").read_bytes()
    (tmp_path / "cut.hdf5").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="cut short"):
        read_posterior(tmp_path / "cut.hdf5")
    with h5py.File(tmp_path / "empty.hdf5", "w"):
        pass
    with pytest.raises(InputError, match="no posterior samples in any known layout"):
        read_posterior(tmp_path / "empty.hdf5")
    text = write_text(tmp_path / "a.dat", draws).read_text()
    (tmp_path / "cut.dat").write_text(text[:-30])
    with pytest.raises(InputError, match="cut short"):
        read_posterior(tmp_path / "cut.dat")
    (tmp_path / "bare.dat").write_text("1.0 2.0\n3.0 4.0\n")
    with pytest.raises(InputError, match="not a header"):
        read_posterior(tmp_path / "bare.dat")
    (tmp_path / "binary.dat").write_bytes(b"\x89\xff\xfe\x00")
    with pytest.raises(InputError, match="not readable as text"):
        read_posterior(tmp_path / "binary.dat")
    (tmp_path / "none.dat").write_text("mass_1_source mass_2_source\n")
    with pytest.raises(InputError, match="no draws"):
        read_posterior(tmp_path / "none.dat")
    (tmp_path / "zero.dat").write_text("")
    with pytest.raises(InputError, match="no draws"):
        read_posterior(tmp_path / "zero.dat")


def test_missing_columns(tmp_path, draws):
    path = write_text(tmp_path / "a.dat", draws | {"eccentrcity": np.zeros(50)})
    with pytest.raises(InputError, match=r"did you mean 'eccentrcity'.*mass_1_source"):
        read_events(path, ("eccentricity",), {"eccentricity": "uniform"})
    with pytest.raises(InputError, match="'redshift' does not follow"):
        read_events(path, (*MASSES, "redshift"), "2-OGC", cosmology=COSMOLOGY)


def test_few_draws_and_repeated_events(tmp_path, draws):
    path = write_text(tmp_path / "a.dat", draws)
    with pytest.raises(InputError, match="event a has 50 usable draws, fewer than min_draws = 51"):
        read_events(path, MASSES, FLAT, min_draws=51)
    for stem in ("GW150914_x", "GW150914_y"):
        write_text(tmp_path / f"{stem}.dat", draws)
    with pytest.raises(InputError, match="both of event GW150914"):
        read_events(f"{tmp_path}/GW*", MASSES, FLAT)


def test_a_wrong_prior_is_found_before_any_file_is_opened():
    with pytest.raises(InputError, match="says nothing of the distance"):
        read_events("/nowhere/*.dat", (*MASSES, "redshift"), FLAT)


# ---- injections ----------------------------------------------------------------------------------


@pytest.fixture
def found():
    """Injections in the columns of the LVK files, isotropic spins of uniform magnitude to 0.9."""
    rng = np.random.default_rng(8)
    n = 400
    m1, z = rng.uniform(20, 60, n), rng.uniform(0.1, 1.0, n)
    columns = {"mass1_source": m1, "mass2_source": m1 * rng.uniform(0.3, 1, n), "redshift": z}
    for i in (1, 2):
        a, cos, phi = rng.uniform(0, 0.9, n), rng.uniform(-1, 1, n), rng.uniform(0, 6, n)
        columns |= {
            f"spin{i}x": a * np.sqrt(1 - cos**2) * np.cos(phi),
            f"spin{i}y": a * np.sqrt(1 - cos**2) * np.sin(phi),
            f"spin{i}z": a * cos,
        }
    return columns


def spins_of(found):
    vectors = [np.stack([found[f"spin{i}{x}"] for x in "xyz"]) for i in (1, 2)]
    a = np.linalg.norm(vectors, axis=1)
    cos = np.stack([vectors[i][2] / a[i] for i in (0, 1)])
    return a, cos


def masses_redshift_density(found):
    return 1e-3 / found["mass1_source"] * (1 + found["redshift"])


def cartesian_density(found):
    a, _ = spins_of(found)
    return masses_redshift_density(found) / np.prod(4 * np.pi * a**2 * 0.9, axis=0)


FULL = ("mass_1_source", "mass_ratio", "redshift", "a_1", "a_2", "cos_tilt_1", "cos_tilt_2")
SPINLESS = ("mass_1_source", "mass_ratio", "redshift")
ISOTROPIC = {"name": "isotropic-uniform", "a_max": 0.9}


def write_o3(path, found, **more):
    with h5py.File(path, "w") as file:
        group = file.create_group("injections")
        group.attrs["total_generated"] = 10_000
        group.attrs["analysis_time_s"] = 0.5 * 365.25 * 86400
        for name, column in (found | more).items():
            group[name] = column
    return path


def write_o4a(path, found, **more):
    with h5py.File(path, "w") as file:
        file.attrs["total_generated"] = 10_000
        file.attrs["total_analysis_time"] = 2 * 365.25 * 86400
        file["events"] = structured(found | more)
    return path


def test_generic_table(tmp_path):
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        file.attrs.update(total_generated=1000, T_obs_yr=2.0, VTmax_Gpc3=5.0)
        file["mass_1_source"] = [30.0, 40.0]
        file["mass_2_source"] = [20.0, 10.0]
        file["p_draw"] = [0.1, 0.2]
    read = read_injections(tmp_path / "a.hdf5")
    assert (len(read), read.total_generated, read.scale) == (2, 1000, 10.0)
    np.testing.assert_allclose(read.log_p_draw, np.log([0.1, 0.2]))
    read = read_injections(tmp_path / "a.hdf5", ("mass_1_source", "mass_ratio"))
    np.testing.assert_allclose(read.log_p_draw, np.log([0.1 * 30, 0.2 * 40]))
    np.testing.assert_allclose(read.theta["mass_ratio"], [2 / 3, 0.25])


def test_csv_needs_the_total(tmp_path):
    (tmp_path / "a.csv").write_text("m1_source,q,z,log_p_draw\n30,0.5,0.1,-1\n40,0.6,0.2,-2\n")
    with pytest.raises(InputError, match="give total_generated = N"):
        read_injections(tmp_path / "a.csv", SPINLESS)
    stated = Stated(total_generated=100, scale=0.7)
    read = read_injections(tmp_path / "a.csv", SPINLESS, stated=stated)
    np.testing.assert_allclose(read.log_p_draw, [-1, -2])
    assert (read.total_generated, read.scale) == (100, 0.7)
    with pytest.raises(InputError, match="below the 2 injections"):
        read_injections(tmp_path / "a.csv", SPINLESS, stated=Stated(total_generated=1))


def test_o3_files_and_cuts(tmp_path, found):
    n = len(found["redshift"])
    far_1, far_2 = np.full(n, np.inf), np.full(n, np.nan)
    far_1[:100], far_2[50:150] = 0.5, 0.9
    path = write_o3(tmp_path / "o3.hdf5", found, sampling_pdf=cartesian_density(found),
                    far_gstlal=far_1, far_pycbc_bbh=far_2)  # fmt: skip
    read = read_injections(path, FULL, far_cut=1.0)
    assert (len(read), read.total_generated) == (150, 10_000)
    assert read.scale == pytest.approx(0.5)
    expected = masses_redshift_density(found) * found["mass1_source"] / (0.9 * 2) ** 2
    np.testing.assert_allclose(read.log_p_draw, np.log(expected)[:150])
    assert len(read_injections(path, FULL, far_cut=0.7)) == 100
    with pytest.raises(InputError, match="give far_cut"):
        read_injections(path, FULL)
    with pytest.raises(InputError, match="none of 400 injections is found"):
        read_injections(path, FULL, far_cut=1e-3)


def test_inverse_rates(tmp_path, found):
    ifar = np.zeros(len(found["redshift"]))
    ifar[:10] = 4.0
    path = write_o3(
        tmp_path / "o3.hdf5", found, sampling_pdf=cartesian_density(found), ifar_cwb=ifar
    )
    assert len(read_injections(path, FULL, far_cut=1.0)) == 10


def test_spins_the_population_leaves_open(tmp_path, found):
    n = len(found["redshift"])
    path = write_o3(tmp_path / "o3.hdf5", found, sampling_pdf=cartesian_density(found),
                    far_gstlal=np.zeros(n))  # fmt: skip
    with pytest.raises(InputError, match="state the spins"):
        read_injections(path, SPINLESS, far_cut=1.0)
    masses = masses_redshift_density(found) * found["mass1_source"]
    read = read_injections(path, SPINLESS, far_cut=1.0, spins=ISOTROPIC)
    np.testing.assert_allclose(read.log_p_draw, np.log(masses))
    read = read_injections(path, (*SPINLESS, "chi_eff"), far_cut=1.0, spins=ISOTROPIC)
    q, chi_eff = read.theta["mass_ratio"], read.theta["chi_eff"]
    induced = spin_priors.isotropic_chi_eff(chi_eff, q, 0.9)
    np.testing.assert_allclose(read.log_p_draw, np.log(masses * induced), rtol=1e-9)
    # Redshift cannot be left open.
    with pytest.raises(InputError, match=r"\['distance'\] must be in both"):
        read_injections(path, ("mass_1_source", "mass_ratio"), far_cut=1.0, spins=ISOTROPIC)


def test_o1_to_o3_mixture(tmp_path, found):
    n = len(found["redshift"])
    run = np.array([b"o1", b"o2", b"o3", b"o3"] * (n // 4))
    snr = np.where(np.arange(n) < 100, 12.0, 8.0)
    far = np.where(run == b"o3", np.where(np.arange(n) >= 200, 0.1, 10.0), np.inf)
    path = write_o3(tmp_path / "mix.hdf5", found, sampling_pdf=cartesian_density(found),
                    far_gstlal=far, optimal_snr_net=snr, name=run)  # fmt: skip
    read = read_injections(path, FULL, far_cut=1.0, snr_cut=10.0)
    assert len(read) == 50 + 100
    with pytest.raises(InputError, match=r"200 injections were analysed by no search.*snr_cut"):
        read_injections(path, FULL, far_cut=1.0)


def test_cumulative_to_o4a(tmp_path, found):
    n = len(found["redshift"])
    semi = np.where(np.arange(n) < 100, np.where(np.arange(n) < 30, 11.0, 7.0), 0.0)
    weights = np.linspace(0.5, 2.0, n)
    cartesian = "lnpdraw_mass1_source_mass2_source_redshift_" + "_".join(
        f"spin{i}{x}" for i in (1, 2) for x in "xyz"
    )
    more = {
        cartesian: np.log(cartesian_density(found)),
        "weights": weights,
        "gstlal_far": np.where(np.arange(n) >= 300, 0.01, np.inf),
        "cwb-bbh_far": np.full(n, np.inf),
        "semianalytic_observed_phase_maximized_snr_net": semi,
    }
    path = write_o4a(tmp_path / "o4a.hdf", found, **more)
    read = read_injections(path, FULL, far_cut=1.0, snr_cut=10.0)
    assert len(read) == 30 + 100
    assert read.scale == pytest.approx(2.0)
    keep = np.r_[:30, 300:n]
    expected = masses_redshift_density(found) * found["mass1_source"] / (0.9 * 2) ** 2 / weights
    np.testing.assert_allclose(read.log_p_draw, np.log(expected)[keep])


@pytest.mark.parametrize("factored", [True, False])
def test_o4a_densities_in_angles(tmp_path, found, factored):
    n = len(found["redshift"])
    _, cos = spins_of(found)
    sin = np.sqrt(1 - cos**2)
    more = {"gstlal_far": np.zeros(n)}
    density = masses_redshift_density(found)
    if factored:
        more |= {"lnpdraw_mass1_source": np.log(density),
                 "lnpdraw_mass2_source_GIVEN_mass1_source": np.zeros(n),
                 "lnpdraw_z": np.zeros(n)}  # fmt: skip
        for i in (1, 2):
            more[f"lnpdraw_spin{i}_magnitude"] = np.full(n, -np.log(0.9))
            more[f"lnpdraw_spin{i}_polar_angle"] = np.log(0.5 * sin[i - 1])
        found["z"] = found.pop("redshift")
    else:
        name = "lnpdraw_mass1_source_mass2_source_redshift_" + "_".join(
            f"spin{i}_magnitude_spin{i}_polar_angle_spin{i}_azimuthal_angle" for i in (1, 2)
        )
        more[name] = np.log(density * np.prod(sin / (2 * 0.9 * 2 * np.pi), axis=0))
    path = write_o4a(tmp_path / "o4a.hdf", found, **more)
    read = read_injections(path, FULL, far_cut=1.0)
    expected = density * found["mass1_source"] / (0.9 * 2) ** 2
    np.testing.assert_allclose(read.log_p_draw, np.log(expected))
    np.testing.assert_allclose(read.theta["cos_tilt_2"], cos[1])


@pytest.mark.parametrize("bad", [0.0, -1.0, np.nan])
def test_draw_densities_must_be_positive(tmp_path, bad):
    columns = {"m1_source": [30.0, 40.0], "q": [0.5, 0.6], "p_draw": [1.0, bad]}
    path = write_text(tmp_path / "a.dat", columns)
    with pytest.raises(InputError, match="1 of 2 values of 'p_draw' are zero, negative or NaN"):
        read_injections(path, stated=Stated(total_generated=10))
    density = {"sampling_pdf": np.array([1.0, bad]), "far_x": np.zeros(2)}
    path = write_o3(tmp_path / "a.hdf5", {"mass1_source": np.array([30.0, 40.0])}, **density)
    with pytest.raises(InputError, match="the density of 1 of 2 injections is zero, negative"):
        read_injections(path, far_cut=1.0)


def test_injections_without_a_density(tmp_path):
    path = write_text(tmp_path / "a.dat", {"m1_source": [30.0], "q": [0.5]})
    with pytest.raises(InputError, match="Name it with p_draw"):
        read_injections(path, stated=Stated(total_generated=10))


# ---- published and reference files ---------------------------------------------------------------


def test_2_ogc(shared, require_path):
    folder = require_path(shared / "data" / "2ogc")
    parameters = ("mass_1_source", "mass_ratio", "redshift")
    events = read_events(f"{folder}/*POSTERIOR_1510*.hdf", parameters, "2-OGC", cosmology=COSMOLOGY)
    assert [event.name for event in events] == ["GW151011_192749", "GW151012_095443"]
    assert len(events[1]) == 10600
    np.testing.assert_allclose(np.median(events[1].draws["mass_1_source"]), 22.4, atol=0.1)
    expected = np.log(events[1].draws["mass_1_source"]) + np.asarray(
        COSMOLOGY.log_differential_comoving_volume(events[1].draws["redshift"])
    )
    np.testing.assert_allclose(events[1].log_ref, expected, rtol=1e-9)


def test_reference_catalogue(shared, require_path):
    folder = require_path(shared / "reference" / "gwkokab")
    events = read_events(f"{folder}/posteriors/*.dat", MASSES, FLAT)
    assert (len(events), len(events[1])) == (70, 12)
    assert all(np.all(event.log_ref == 0.0) for event in events)
    read = read_injections(folder / "injections_found.hdf5", MASSES)
    assert (len(read), read.total_generated) == (18557, 400_000)
    assert read.scale == pytest.approx(15.738586584049509)
