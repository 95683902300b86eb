//! One verb each.

pub(crate) mod run;

pub(crate) mod plan;

pub(crate) mod stages;

pub(crate) mod status;

pub(crate) mod show;

pub(crate) mod convert;
