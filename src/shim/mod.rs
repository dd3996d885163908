//! For programs that cannot speak gRPC: what was declared for them is fetched and delivered in a form that they know. A client like
//! any other: the agent attests the process that runs this, and all it gets is what its own identity may have.

pub mod drop_in;
pub mod exec;
mod fetch;
pub mod file;
mod rotations;
mod stream;
mod template;
pub mod tools;
mod undumped;

pub use fetch::{FetchError, Fetched, declared, fetch, fetch_living, give_back, offers};
pub use rotations::{Rotations, Turn};
pub use template::{Cast, Template, TemplateError};
pub use undumped::{leave_no_core, leave_no_core_beside};
