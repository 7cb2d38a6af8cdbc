//! Files: whole or not there, in bounds, in order after a restart.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tilewise_engine::Error;
use tilewise_engine::cache::tiers::{CacheTier, DiskTier, ObjectTier, PRIVATE, TierError};

use crate::support::{Chunks, LONG, Random};

/// Tells a child of this test what to do, and where.
const FOLDER: &str = "TILEWISE_TEST_FOLDER";

/// What a child says before it begins to write.
const READY: &str = "the child is ready";

/// The chunks that children write: more than the bound holds.
fn chunks() -> Chunks {
    Chunks::new(40, 8192)
}

/// Room for about 24 of them.
const BOUND: u64 = 200_000;

/// All files below a folder, with their sizes.
fn files(folder: &Path) -> Vec<(PathBuf, u64)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        match entry.metadata().unwrap() {
            metadata if metadata.is_dir() => found.extend(files(&entry.path())),
            metadata => found.push((entry.path(), metadata.len())),
        }
    }
    found
}

/// Starts this program again, with one test of it, which ignores that it is not to be run.
fn child(test: &str, folder: &Path, shell: &str) -> Child {
    let program = std::env::current_exe().unwrap();
    Command::new("sh")
        .args(["-c", &format!("{shell} exec \"$0\" --exact {test} --ignored --nocapture")])
        .arg(program)
        .env(FOLDER, folder)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

#[test]
#[ignore = "the child of the tests that kill it"]
fn child_that_writes() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let chunks = chunks();
    let mut random = Random::new(u64::from(std::process::id()));
    let mut disk = DiskTier::open(Path::new(&folder), BOUND).unwrap();
    println!("{READY}");
    loop {
        let index = random.below(40);
        match random.below(8) {
            0 => disk.remove(&chunks.key(index)).unwrap(),
            1 => assert!(disk.load(&chunks.key(index)).is_ok()),
            _ => disk.store(&chunks.key(index), &chunks.value(index)).unwrap(),
        }
    }
}

#[test]
fn a_writer_killed_a_hundred_times_leaves_right_values_or_none_within_the_bound() {
    let folder = tempfile::tempdir().unwrap();
    let seed = 42;
    let (chunks, mut random) = (chunks(), Random::new(seed));
    let (mut values, mut leftovers) = (0, 0);
    for round in 0..100 {
        let mut child = child("disk::child_that_writes", folder.path(), "");
        // Not before it writes: to start takes longer than the rest.
        let mut said = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(said.any(|line| line.unwrap().ends_with(READY)), "round {round} of seed {seed}: no writer");
        std::thread::sleep(Duration::from_micros(random.below(30_000) as u64));
        child.kill().unwrap();
        child.wait().unwrap();
        let total: u64 = files(folder.path()).iter().map(|(_, len)| len).sum();
        assert!(total <= BOUND, "round {round} of seed {seed}: {total} bytes");
        let is_partial = |path: &Path| path.extension().is_some_and(|extension| extension == "partial");
        leftovers += files(folder.path()).iter().filter(|(path, _)| is_partial(path)).count();
        let mut disk = DiskTier::open(folder.path(), BOUND).unwrap();
        let found = (0..40).filter(|&index| chunks.is_in(&mut disk, index)).count();
        values += found;
        let left = files(folder.path());
        assert_eq!(left.len(), found, "round {round} of seed {seed}: leftovers: {left:?}");
    }
    println!("disk: 100 kills, {values} values read back, {leftovers} torn writes removed");
    assert!(values > 100 && leftovers > 0, "{values} values, {leftovers} leftovers: nothing was interrupted");
}

#[test]
fn the_least_recently_used_goes_first_also_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let chunks = Chunks::new(8, 1000);
    let len = chunks.value(0).as_bytes().len() as u64;
    let open = || DiskTier::open(folder.path(), 4 * len).unwrap();
    let mut disk = open();
    for index in 0..4 {
        disk.store(&chunks.key(index), &chunks.value(index)).unwrap();
    }
    assert!(chunks.is_in(&mut disk, 0));
    let mut disk = open();
    assert_eq!(disk.held_bytes(), Some(4 * len));
    for index in 4..6 {
        disk.store(&chunks.key(index), &chunks.value(index)).unwrap();
        assert!(files(folder.path()).iter().map(|(_, len)| len).sum::<u64>() <= 4 * len);
    }
    let held: Vec<usize> = (0..8).filter(|&index| chunks.is_in(&mut disk, index)).collect();
    assert_eq!(held, [0, 3, 4, 5], "1 and 2 were not used for longest");
    // A smaller bound evicts when the folder is opened.
    let mut disk = DiskTier::open(folder.path(), 2 * len).unwrap();
    let held: Vec<usize> = (0..8).filter(|&index| chunks.is_in(&mut disk, index)).collect();
    assert_eq!(held, [4, 5]);
    assert_eq!(files(folder.path()).len(), 2);
}

#[test]
fn tiers_that_share_a_folder_see_each_others_values_and_keep_to_the_bound_together() {
    let folder = tempfile::tempdir().unwrap();
    let chunks = chunks();
    let mut tiers = [(); 2].map(|()| DiskTier::open(folder.path(), BOUND).unwrap());
    tiers[0].store(&chunks.key(0), &chunks.value(0)).unwrap();
    assert!(tiers[1].contains(&chunks.key(0)).unwrap() && chunks.is_in(&mut tiers[1], 0));
    for round in 0..200 {
        let index = round * 7 % 40;
        tiers[round % 2].store(&chunks.key(index), &chunks.value(index)).unwrap();
        let total: u64 = files(folder.path()).iter().map(|(_, len)| len).sum();
        assert!(total <= BOUND + BOUND / 16, "round {round}: {total} bytes");
    }
    tiers[0].remove(&chunks.key(0)).unwrap();
    assert!(!chunks.is_in(&mut tiers[1], 0), "what another removed is a miss");
}

#[test]
fn only_the_leftovers_of_writers_that_are_gone_are_removed() {
    let folder = tempfile::tempdir().unwrap();
    let chunks = Chunks::new(1, 1000);
    DiskTier::open(folder.path(), BOUND).unwrap().store(&chunks.key(0), &chunks.value(0)).unwrap();
    let value = files(folder.path())[0].0.clone();
    let torn = value.with_extension("1-0.partial");
    let live = value.with_extension("1-1.partial");
    fs::write(&torn, b"half").unwrap();
    fs::write(&live, b"half").unwrap();
    let writer = File::open(&live).unwrap();
    writer.try_lock().unwrap();
    let mine = folder.path().join("README");
    let other = value.with_file_name("not a value");
    fs::write(&mine, b"of the user's").unwrap();
    fs::write(&other, b"of the user's").unwrap();
    let mut disk = DiskTier::open(folder.path(), BOUND).unwrap();
    assert!(!torn.exists() && live.exists() && mine.exists() && other.exists());
    assert!(chunks.is_in(&mut disk, 0));
    // Nor is anything but values evicted.
    drop(DiskTier::open(folder.path(), 0).unwrap());
    assert!(!value.exists() && mine.exists() && other.exists());
}

#[test]
fn a_place_that_cannot_be_written_to_refuses_stores_and_still_gives_what_it_has() {
    let folder = tempfile::tempdir().unwrap();
    let chunks = Chunks::new(2, 1000);
    let mut disk = DiskTier::open(folder.path(), BOUND).unwrap();
    disk.store(&chunks.key(0), &chunks.value(0)).unwrap();
    disk.store(&chunks.key(1), &chunks.value(1)).unwrap();
    // Where the second value's folder was, there is a file: not even the superuser can write below it.
    disk.remove(&chunks.key(1)).unwrap();
    let second = chunks.key(1).digest()[0];
    let in_the_way = folder.path().join(format!("{second:02x}"));
    assert_ne!(second, chunks.key(0).digest()[0], "the test needs values in two folders");
    fs::remove_dir(&in_the_way).unwrap();
    fs::write(&in_the_way, b"").unwrap();
    let mut disk = DiskTier::open(folder.path(), BOUND).unwrap();
    let stored = disk.store(&chunks.key(1), &chunks.value(1));
    assert!(matches!(stored, Err(TierError::Refused(_))), "{stored:?}");
    assert!(chunks.is_in(&mut disk, 0));
    let too_large = DiskTier::open(folder.path(), 10).unwrap().store(&chunks.key(0), &chunks.value(0));
    assert!(matches!(too_large, Err(TierError::Refused(_))), "{too_large:?}");
    // A folder that cannot be made is the caller's mistake.
    assert!(matches!(DiskTier::open(&in_the_way.join("below"), BOUND), Err(Error::File { .. })));
}

#[test]
#[ignore = "the child of the test that limits it"]
fn child_without_room() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let chunks = chunks();
    let mut disk = DiskTier::open(Path::new(&folder), BOUND).unwrap();
    let stored = disk.store(&chunks.key(1), &chunks.value(1));
    assert!(matches!(stored, Err(TierError::Refused(_))), "{stored:?}");
    assert!(chunks.is_in(&mut disk, 0), "what was there");
    assert!(disk.load(&chunks.key(1)).unwrap().is_none());
    assert_eq!(files(Path::new(&folder)).len(), 1, "half a file was left");
}

#[test]
fn a_write_that_ends_halfway_for_want_of_room_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let chunks = chunks();
    DiskTier::open(folder.path(), BOUND).unwrap().store(&chunks.key(0), &chunks.value(0)).unwrap();
    // Files of 4 KiB at most, in blocks of 512 bytes: the write of the rest fails as on a full disk.
    let mut child = child("disk::child_without_room", folder.path(), "trap '' XFSZ; ulimit -f 8;");
    let status = child.wait().unwrap();
    assert!(status.success(), "{status}");
    let mut disk = DiskTier::open(folder.path(), BOUND).unwrap();
    disk.store(&chunks.key(1), &chunks.value(1)).unwrap();
    assert!(chunks.is_in(&mut disk, 1), "with room there is no harm left");
}

#[cfg(unix)]
#[test]
fn files_are_for_their_owner_alone_unless_the_folder_is_shared() {
    use std::os::unix::fs::PermissionsExt;
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let (chunks, folder) = (Chunks::new(1, 4096), tempfile::tempdir().unwrap());
    for (wanted, of_file, of_folder) in
        [(PRIVATE, 0o600, 0o700), (0o660, 0o660, 0o770), (0o640, 0o640, 0o750)]
    {
        let place = folder.path().join(format!("{wanted:o}")).join("cache");
        let mut disk = DiskTier::with_mode(&place, BOUND, wanted).unwrap();
        disk.store(&chunks.key(0), &chunks.value(0)).unwrap();
        let [(file, _)] = &files(&place)[..] else { panic!("one file") };
        assert_eq!((mode(file), mode(file.parent().unwrap()), mode(&place)), (of_file, of_folder, of_folder));
    }
}

#[cfg(unix)]
#[test]
fn what_stands_in_a_files_place_is_a_miss_and_makes_way() {
    let (chunks, folder) = (Chunks::new(1, 4096), tempfile::tempdir().unwrap());
    let objects = tempfile::tempdir().unwrap();
    let mut tiers: [(Box<dyn CacheTier>, &Path); 2] = [
        (Box::new(DiskTier::open(folder.path(), BOUND).unwrap()), folder.path()),
        (Box::new(ObjectTier::folder(objects.path(), LONG).unwrap()), objects.path()),
    ];
    for (tier, folder) in &mut tiers {
        let spoils: [&dyn Fn(&Path); 5] = [
            &|path| assert!(Command::new("mkfifo").arg(path).status().unwrap().success()),
            &|path| std::os::unix::fs::symlink("/dev/zero", path).unwrap(),
            &|path| std::os::unix::fs::symlink("/nonexistent/x", path).unwrap(),
            &|path| std::os::unix::fs::symlink(path, path).unwrap(),
            &|path| File::create(path).unwrap().set_len(1 << 40).unwrap(),
        ];
        for (index, spoil) in spoils.iter().enumerate() {
            tier.store(&chunks.key(0), &chunks.value(0)).unwrap();
            assert!(chunks.is_in(&mut **tier, 0), "{index}");
            let [(file, _)] = &files(folder)[..] else { panic!("one file") };
            fs::remove_file(file).unwrap();
            spoil(file);
            let start = Instant::now();
            let loaded = tier.load(&chunks.key(0)).unwrap();
            assert!(loaded.is_none_or(|value| value.open(&chunks.key(0)).is_err()), "{index}");
            assert!(start.elapsed() < Duration::from_secs(2), "{index}: {:?}", start.elapsed());
            tier.remove(&chunks.key(0)).unwrap();
        }
        tier.store(&chunks.key(0), &chunks.value(0)).unwrap();
        assert!(chunks.is_in(&mut **tier, 0));
    }
}
