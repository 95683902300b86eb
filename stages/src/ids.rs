//! What the id of a row tells of where it comes from.

/// The sub-dataset of a video or clip: the first folder of its name, or nothing where it lies in none.
pub(crate) fn sub_dataset(id: &str) -> &str {
    id.split_once('/').map_or("", |(first, _)| first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_folder_is_the_sub_dataset() {
        for (id, name) in [("bridge/a/17.pickle#3", "bridge"), ("17.pickle", ""), ("/17.pickle", "")] {
            assert_eq!(sub_dataset(id), name);
        }
    }
}
