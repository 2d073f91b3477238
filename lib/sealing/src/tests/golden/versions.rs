//! The rule of versions, in `docs/object-format.md`: readers first, writers second, and a version is read for ever.

use std::collections::BTreeMap;

use schemas::codec::FormatError;
use schemas::object::{ObjectKind, PREAMBLE_BYTES};
use schemas::record::{self, Envelope};

use super::{WRAPPED, folders, names};

/// A format with a version in its bytes.
#[derive(Debug, Clone, Copy)]
struct Format {
    name: &'static str,
    magic: [u8; 4],
    written: u8,
    read: &'static [u8],
}

fn formats() -> Vec<Format> {
    let named = |kind: ObjectKind| match kind {
        ObjectKind::Shared => "shared and quarantine object",
        ObjectKind::Session => "session object",
        ObjectKind::Journal => "entry of the journal",
        ObjectKind::Export => "part of an export",
    };
    let of_object = |kind: ObjectKind| Format {
        name: named(kind),
        magic: *kind.magic(),
        written: kind.written(),
        read: kind.read(),
    };
    let record = Format { name: "record", magic: *b"CLVR", written: record::VERSION, read: record::READ };
    ObjectKind::ALL.into_iter().map(of_object).chain([record]).collect()
}

/// The first bytes of the golden files, by folder: magic and version.
type Folders = BTreeMap<u8, Vec<[u8; PREAMBLE_BYTES]>>;

/// What is wrong with the versions: a writer that runs ahead of the readers, a reader without its golden files, golden files
/// without their reader.
fn version_faults(formats: &[Format], folders: &Folders) -> Vec<String> {
    let mut faults = Vec::new();
    let has = |version: u8, format: &Format| {
        let [a, b, c, d] = format.magic;
        folders.get(&version).is_some_and(|files| files.contains(&[a, b, c, d, version]))
    };
    for format in formats {
        let name = format.name;
        if !format.read.contains(&format.written) {
            faults.push(format!("{name}: version {} is written and not read", format.written));
        }
        for version in format.read {
            if !has(*version, format) {
                faults.push(format!("{name}: version {version} is read and has no golden file"));
            }
        }
    }
    for (folder, files) in folders {
        if files.is_empty() {
            faults.push(format!("v{folder} is empty"));
        }
        for [a, b, c, d, version] in files {
            let magic = [*a, *b, *c, *d];
            match formats.iter().find(|format| format.magic == magic) {
                None => faults.push(format!("v{folder} has a file of no format, {magic:?}")),
                Some(format) if version != folder || !format.read.contains(folder) => {
                    faults
                        .push(format!("{}: v{folder} has a file of version {version}, which is not read", format.name));
                }
                Some(_) => {}
            }
        }
    }
    faults
}

/// The rule of versions over the code and the folders as they are.
#[test]
fn golden_files_and_code_agree_on_versions() {
    let mut found = Folders::new();
    for folder in folders().values() {
        let first = |name: &String| {
            let bytes = std::fs::read(folder.path.join(name)).unwrap();
            *bytes.first_chunk().unwrap()
        };
        let versioned = |name: &&String| name.ends_with(".bin") && *name != WRAPPED;
        found.entry(folder.version).or_default().extend(names(&folder.path).iter().filter(versioned).map(first));
    }
    assert_eq!(version_faults(&formats(), &found), Vec::<String>::new());
    // A wrapped key has no version in its bytes, see docs/object-format.md.
    assert!(folders()["v1"].path.join(WRAPPED).is_file());
    // The lists are those that the decoders go by.
    for format in formats() {
        for version in 0..=u8::MAX {
            let [a, b, c, d] = format.magic;
            let mut bytes = vec![a, b, c, d, version];
            bytes.resize(record::ENVELOPE_BYTES, 0);
            let read = ObjectKind::of(&bytes).map(drop).or_else(|error| match error {
                FormatError::Magic => Envelope::read(&bytes).map(drop),
                other => Err(other),
            });
            let expected = if format.read.contains(&version) { Ok(()) } else { Err(FormatError::Version(version)) };
            assert_eq!(read, expected, "{} of version {version}", format.name);
        }
    }
}

#[test]
fn the_rule_of_versions_finds_each_way_to_break_it() {
    const A: Format = Format { name: "a", magic: *b"AAAA", written: 1, read: &[1] };
    const B: Format = Format { name: "b", magic: *b"BBBB", written: 2, read: &[1, 2] };
    let (a1, b1, b2) = (*b"AAAA\x01", *b"BBBB\x01", *b"BBBB\x02");
    let golden = || Folders::from([(1, vec![a1, b1]), (2, vec![b2])]);
    let check = |formats: &[Format], folders: Folders, expect: &[&str]| {
        assert_eq!(version_faults(formats, &folders), expect);
    };
    check(&[A, B], golden(), &[]);
    // A writer bumped without readers.
    check(&[Format { written: 2, ..A }, B], golden(), &["a: version 2 is written and not read"]);
    // Readers, too, but nothing to prove them by.
    check(&[Format { written: 2, read: &[1, 2], ..A }, B], golden(), &["a: version 2 is read and has no golden file"]);
    // A reader dropped.
    check(&[A, Format { read: &[2], ..B }], golden(), &["b: v1 has a file of version 1, which is not read"]);
    // Golden files dropped, with their folder and without.
    check(&[A, B], Folders::from([(1, vec![a1, b1])]), &["b: version 2 is read and has no golden file"]);
    check(&[A, B], Folders::from([(1, vec![a1]), (2, vec![b2])]), &["b: version 1 is read and has no golden file"]);
    check(&[A, B], Folders::from([(1, vec![a1, b1]), (2, vec![b2]), (3, vec![])]), &["v3 is empty"]);
    // A file in the folder of another version, and a file of nobody.
    let misplaced = Folders::from([(1, vec![a1, b1, b2]), (2, vec![b2])]);
    check(&[A, B], misplaced, &["b: v1 has a file of version 2, which is not read"]);
    let foreign = Folders::from([(1, vec![a1, b1, *b"CCCC\x01"]), (2, vec![b2])]);
    check(&[A, B], foreign, &["v1 has a file of no format, [67, 67, 67, 67]"]);
}
