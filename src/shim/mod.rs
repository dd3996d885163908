//! For programs that cannot speak gRPC: what was declared for them is fetched and delivered in a form that they know. A client like
//! any other: the agent attests the process that runs this, and all it gets is what its own identity may have.

mod fetch;
pub mod file;
mod rotations;
mod template;

pub use fetch::{FetchError, Fetched, declared, fetch, offered};
pub use rotations::{Rotations, Turn};
pub use template::{Cast, Template, TemplateError};
