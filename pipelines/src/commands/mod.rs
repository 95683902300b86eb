//! One verb each.

pub(crate) mod run;

pub(crate) mod plan;

pub(crate) mod stages;

pub(crate) mod devices;

pub(crate) mod status;

pub(crate) mod quarantine;

pub(crate) mod gc;

pub(crate) mod verify;

pub(crate) mod show;

pub(crate) mod lineage;

pub(crate) mod convert;
