//! Which files of a crate import which, read from their `use` lines.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use syn::{
    Attribute, ItemMod, ItemUse, UseName, UseRename, UseTree, Visibility,
    visit::{self, Visit},
};

/// The names of a path, one by one.
type Names = Vec<String>;

/// By file, as the folder `src` names it: the files of the same crate that it imports.
pub type Imports = BTreeMap<String, BTreeSet<String>>;

/// Reads all files of the library in `src`, but for the tests in them.
///
/// A file imports the file that a path in it leads to: `use super::X` that of its folder, `use self::child::X` or
/// `use child::X` that of its child. `mod child;` imports nothing, nor does a call of `child::f()`.
pub fn of(src: &Path) -> Imports {
    let mut paths = BTreeMap::new();
    read(src, src, &mut paths);
    let files: BTreeMap<Names, String> = paths.keys().map(|file| (module(file), file.clone())).collect();
    let import = |(file, paths): (&String, &Vec<Names>)| {
        let own = module(file);
        let paths = paths.iter().filter_map(|path| absolute(&own, path, &files));
        // The longest part of a path that is a file; what comes behind is in it.
        let target = |path: Names| (0..=path.len()).rev().find_map(|length| files.get(&path[..length]).cloned());
        (file.clone(), paths.filter_map(target).filter(|target| target != file).collect())
    };
    paths.iter().map(import).collect()
}

/// The circles among `imports`: files each of which leads to each other one of its circle.
pub fn circles(imports: &Imports) -> Vec<BTreeSet<String>> {
    let reach = |from: &String| {
        let (mut seen, mut open) = (BTreeSet::new(), vec![from]);
        while let Some(file) = open.pop() {
            open.extend(imports.get(file).into_iter().flatten().filter(|&next| seen.insert(next.clone())));
        }
        seen
    };
    let reached: BTreeMap<&String, BTreeSet<String>> = imports.keys().map(|file| (file, reach(file))).collect();
    let circle = |file: &String| -> BTreeSet<String> {
        reached[file].iter().filter(|other| reached[other].contains(file)).cloned().collect()
    };
    let circles: BTreeSet<BTreeSet<String>> = imports.keys().map(circle).filter(|circle| !circle.is_empty()).collect();
    circles.into_iter().collect()
}

fn read(src: &Path, folder: &Path, found: &mut BTreeMap<String, Vec<Names>>) {
    for entry in fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display())) {
        let path = entry.expect("a folder can be read").path();
        if path.is_dir() {
            read(src, &path, found);
        } else if path.extension().is_some_and(|end| end == "rs") && !path.ends_with("main.rs") {
            let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            let file = syn::parse_file(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            let mut paths = Paths::default();
            paths.visit_file(&file);
            let name = path.strip_prefix(src).expect("it is in the folder").to_string_lossy().into_owned();
            found.insert(name, paths.0);
        }
    }
}

/// `run/shard.rs` → `[run, shard]`, `run/mod.rs` → `[run]`, `lib.rs` → `[]`.
fn module(file: &str) -> Names {
    let mut parts: Names = file.trim_end_matches(".rs").split('/').map(str::to_owned).collect();
    if parts.last().is_some_and(|last| last == "mod" || last == "lib") {
        parts.pop();
    }
    parts
}

/// Every path of a `use`, and every other one that starts at `crate` or `super`.
#[derive(Default)]
struct Paths(Vec<Names>);

impl<'ast> Visit<'ast> for Paths {
    fn visit_item_use(&mut self, item: &'ast ItemUse) {
        self.add(&item.tree, Vec::new());
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let names: Names = path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        if ["crate", "super"].contains(&names[0].as_str()) {
            self.0.push(names);
        }
        visit::visit_path(self, path);
    }

    // `pub(super)` names a place and imports nothing.
    fn visit_visibility(&mut self, _: &'ast Visibility) {}

    fn visit_item_mod(&mut self, item: &'ast ItemMod) {
        let is_test = |attribute: &Attribute| {
            let list = attribute.meta.require_list().ok();
            list.is_some_and(|list| list.path.is_ident("cfg") && list.tokens.to_string() == "test")
        };
        if !item.attrs.iter().any(is_test) {
            visit::visit_item_mod(self, item);
        }
    }
}

impl Paths {
    fn add(&mut self, tree: &UseTree, mut before: Names) {
        match tree {
            UseTree::Path(path) => {
                before.push(path.ident.to_string());
                self.add(&path.tree, before);
            }
            UseTree::Group(group) => group.items.iter().for_each(|tree| self.add(tree, before.clone())),
            UseTree::Name(UseName { ident }) | UseTree::Rename(UseRename { ident, .. }) => {
                before.push(ident.to_string());
                self.0.push(before);
            }
            UseTree::Glob(_) => self.0.push(before),
        }
    }
}

/// A path from the crate's root; `None` if it leads to another crate.
fn absolute(own: &[String], path: &[String], files: &BTreeMap<Names, String>) -> Option<Names> {
    let (mut base, mut rest) = match path.first()?.as_str() {
        "crate" => (Vec::new(), &path[1..]),
        "self" => (own.to_vec(), &path[1..]),
        "super" => (own.to_vec(), path),
        child => {
            let child: Names = own.iter().cloned().chain([child.to_owned()]).collect();
            return files.contains_key(&child).then(|| own.iter().cloned().chain(path.iter().cloned()).collect());
        }
    };
    while rest.first().is_some_and(|name| name == "super") {
        base.pop()?;
        rest = &rest[1..];
    }
    base.extend(rest.iter().cloned());
    Some(base)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn crate_of(files: &[(&str, &str)]) -> tempfile::TempDir {
        let src = tempfile::tempdir().expect("a folder");
        for (name, text) in files {
            let path = src.path().join(name);
            fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
            fs::write(path, text).expect("a file");
        }
        src
    }

    fn set(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn every_way_to_import_is_seen() {
        let src = crate_of(&[
            ("lib.rs", "pub mod a;\nmod b;\n"),
            ("a/mod.rs", "mod c;\npub use self::c::C;\nuse std::{fs, io};\n"),
            ("a/c.rs", "use crate::{\n    b::{self, B},\n    d::D as E,\n};\nfn f() { super::super::e::f() }\n"),
            ("b.rs", "// use crate::a::X;\n#[cfg(test)]\nmod tests {\n    use crate::e;\n}\n"),
            ("d.rs", "use super::a::c::C;\npub(crate) use crate::Root;\n"),
            ("e.rs", "pub(super) fn e() -> crate::b::B { other_crate::a::f() }\n"),
        ]);
        let imports = of(src.path());
        assert_eq!(imports["lib.rs"], set(&[]));
        assert_eq!(imports["a/mod.rs"], set(&["a/c.rs"]));
        assert_eq!(imports["a/c.rs"], set(&["b.rs", "d.rs", "e.rs"]));
        assert_eq!(imports["b.rs"], set(&[]));
        assert_eq!(imports["d.rs"], set(&["a/c.rs", "lib.rs"]));
        assert_eq!(imports["e.rs"], set(&["b.rs"]));
    }

    #[test]
    fn circles_are_found_and_ways_without_return_are_not() {
        let imports: Imports =
            [("a", &["b"][..]), ("b", &["c"]), ("c", &["a", "d"]), ("d", &["e"]), ("e", &[]), ("f", &["a"])]
                .map(|(file, imported)| (file.to_owned(), set(imported)))
                .into();
        assert_eq!(circles(&imports), [set(&["a", "b", "c"])]);
    }
}
