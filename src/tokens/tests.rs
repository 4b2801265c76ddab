//! The rules of the cache, each on a paused clock. No sockets here: a paused clock and a socket do
//! not get along.

mod fakes;

mod failures;
mod renewal;
mod waiting;
mod withdrawal;
