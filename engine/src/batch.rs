//! A `RecordBatch` as what a timely edge carries.
//!
//! Counted by rows. Within a process a batch moves as it is; between processes it is one Arrow IPC stream (schema,
//! dictionaries, one batch), padded to 8 bytes. A received batch borrows the memory that it was received in: nothing is
//! copied, except arrays whose type wants more alignment than the message gives.
//!
//! An empty batch is never sent: it would be a message without records, and it has no rows that could name a worker.

use std::cell::OnceCell;
use std::io::Write;

use arrow::array::{RecordBatch, UInt32Array};
use arrow::buffer::Buffer;
use arrow::compute::take_record_batch;
use arrow::ipc::reader::StreamDecoder;
use arrow::ipc::writer::StreamEncoder;
use timely::Accountable;
use timely::bytes::arc::Bytes;
use timely::communication::Push;
use timely::dataflow::channels::pact::DistributorPact;
use timely::dataflow::channels::pushers::exchange::Distributor;
use timely::dataflow::channels::{ContainerBytes, Message};
use timely::progress::Stamp;

/// A batch on a timely edge; `None` only while a container is reused. Make one by `From<RecordBatch>`.
#[derive(Default)]
pub struct ArrowBatch {
    batch: Option<RecordBatch>,
    /// The IPC stream in pieces: timely asks for the length first, and a batch should be encoded once.
    encoded: OnceCell<Vec<Buffer>>,
}

impl From<RecordBatch> for ArrowBatch {
    fn from(batch: RecordBatch) -> ArrowBatch {
        ArrowBatch { batch: (batch.num_rows() > 0).then_some(batch), encoded: OnceCell::new() }
    }
}

impl Clone for ArrowBatch {
    fn clone(&self) -> ArrowBatch {
        ArrowBatch { batch: self.batch.clone(), encoded: OnceCell::new() }
    }
}

impl ArrowBatch {
    /// Leaves the container empty.
    pub fn take(&mut self) -> Option<RecordBatch> {
        self.encoded = OnceCell::new();
        self.batch.take()
    }

    fn encoded(&self) -> &[Buffer] {
        self.encoded.get_or_init(|| {
            let Some(batch) = &self.batch else { return Vec::new() };
            StreamEncoder::try_new(batch.schema_ref())
                .and_then(|mut encoder| encoder.encode(batch))
                .unwrap_or_else(|e| panic!("a table's columns are of types that Arrow IPC can carry: {e}"))
        })
    }

    fn encoded_bytes(&self) -> usize {
        self.encoded().iter().map(|piece| piece.len()).sum()
    }
}

impl Accountable for ArrowBatch {
    fn record_count(&self) -> i64 {
        self.batch.as_ref().map_or(0, |batch| batch.num_rows() as i64)
    }
}

/// Lets Arrow's buffers own the memory which timely received.
struct Received(Bytes);

impl AsRef<[u8]> for Received {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl ContainerBytes for ArrowBatch {
    fn from_bytes(bytes: Bytes) -> ArrowBatch {
        if bytes.is_empty() {
            return ArrowBatch::default();
        }
        let mut buffer = Buffer::from(bytes::Bytes::from_owner(Received(bytes)));
        let batch = StreamDecoder::new()
            .decode(&mut buffer)
            .unwrap_or_else(|e| panic!("another worker of this program encoded the batch: {e}"));
        ArrowBatch { batch, encoded: OnceCell::new() }
    }

    fn length_in_bytes(&self) -> usize {
        self.encoded_bytes().next_multiple_of(8)
    }

    fn into_bytes<W: Write>(&self, writer: &mut W) {
        let padding = &[0; 8][..self.length_in_bytes() - self.encoded_bytes()];
        let pieces = self.encoded().iter().map(Buffer::as_slice);
        for piece in pieces.chain([padding]) {
            writer.write_all(piece).expect("timely hands out as many bytes as it was told");
        }
    }
}

/// Sends each row to the worker that its number names. `route` gives one number per row; rows for one worker keep their
/// order and travel as one batch.
pub fn by_row<F>(route: F) -> DistributorPact<impl FnOnce(usize) -> ByRow<F>>
where
    F: FnMut(&RecordBatch) -> Vec<u64> + 'static,
{
    DistributorPact(move |peers| ByRow { route, rows: vec![Vec::new(); peers] })
}

/// Sends each batch as a whole to the worker that its number names: copies nothing, so prefer it where a unit's rows
/// stay together anyway.
pub fn by_batch<F>(route: F) -> DistributorPact<impl FnOnce(usize) -> ByBatch<F>>
where
    F: FnMut(&RecordBatch) -> u64 + 'static,
{
    DistributorPact(move |_| ByBatch { route })
}

/// See [`by_row`].
pub struct ByRow<F> {
    route: F,
    /// Per worker, the indices of its rows.
    rows: Vec<Vec<u32>>,
}

impl<F: FnMut(&RecordBatch) -> Vec<u64>> Distributor<ArrowBatch> for ByRow<F> {
    fn partition<T: Clone, P: Push<Message<T, ArrowBatch>>>(
        &mut self,
        container: &mut ArrowBatch,
        stamp: &Stamp<T>,
        pushers: &mut [P],
    ) {
        let Some(batch) = container.take() else { return };
        let routes = (self.route)(&batch);
        assert_eq!(routes.len(), batch.num_rows(), "a route for each row");
        for (row, route) in (0u32..).zip(routes) {
            self.rows[(route % pushers.len() as u64) as usize].push(row);
        }
        for (rows, pusher) in self.rows.iter_mut().zip(pushers) {
            let rows = std::mem::take(rows);
            let part = match rows.len() {
                0 => continue,
                all if all == batch.num_rows() => batch.clone(),
                _ => take_record_batch(&batch, &UInt32Array::from(rows)).expect("the indices are within the batch"),
            };
            Message::push_at(&mut ArrowBatch::from(part), stamp.clone(), pusher);
        }
    }

    fn flush<T: Clone, P: Push<Message<T, ArrowBatch>>>(&mut self, _: &Stamp<T>, _: &mut [P]) {}
}

/// See [`by_batch`].
pub struct ByBatch<F> {
    route: F,
}

impl<F: FnMut(&RecordBatch) -> u64> Distributor<ArrowBatch> for ByBatch<F> {
    fn partition<T: Clone, P: Push<Message<T, ArrowBatch>>>(
        &mut self,
        container: &mut ArrowBatch,
        stamp: &Stamp<T>,
        pushers: &mut [P],
    ) {
        let Some(batch) = container.take() else { return };
        let worker = ((self.route)(&batch) % pushers.len() as u64) as usize;
        Message::push_at(&mut ArrowBatch::from(batch), stamp.clone(), &mut pushers[worker]);
    }

    fn flush<T: Clone, P: Push<Message<T, ArrowBatch>>>(&mut self, _: &Stamp<T>, _: &mut [P]) {}
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::process::{Command, Stdio};
    use std::sync::{Arc, Mutex};

    use arrow::array::{Array, ArrayRef, ListArray, StringArray, UInt64Array};
    use arrow::datatypes::UInt16Type;
    use timely::CommunicationConfig;
    use timely::container::CapacityContainerBuilder;
    use timely::dataflow::operators::generic::{Operator, source};

    use super::*;

    /// Row i of a table with a number, a text and a list, so that offsets and validity travel too.
    fn table(rows: std::ops::Range<u64>) -> RecordBatch {
        let number: ArrayRef = Arc::new(UInt64Array::from_iter_values(rows.clone()));
        let text: ArrayRef =
            Arc::new(StringArray::from_iter(rows.clone().map(|i| (i % 3 > 0).then(|| format!("row {i}")))));
        let codes: ArrayRef = Arc::new(ListArray::from_iter_primitive::<UInt16Type, _, _>(
            rows.map(|i| Some((0..i % 5).map(move |k| Some((i + k) as u16)))),
        ));
        RecordBatch::try_from_iter_with_nullable([
            ("number", number, false),
            ("text", text, true),
            ("codes", codes, false),
        ])
        .unwrap()
    }

    fn numbers(batch: &RecordBatch) -> Vec<u64> {
        batch.column(0).as_any().downcast_ref::<UInt64Array>().unwrap().values().to_vec()
    }

    const BATCHES: u64 = 40;
    const ROWS: u64 = 25;

    /// Every worker sends its share of the batches; gives the rows that this process received, with their worker.
    fn exchange(config: CommunicationConfig, rowwise: bool) -> Vec<(u64, RecordBatch)> {
        let received = Arc::new(Mutex::new(Vec::new()));
        let sink = received.clone();
        let config = timely::Config { communication: config, worker: timely::WorkerConfig::default() };
        let workers = timely::execute(config, move |worker| {
            let (index, peers) = (worker.index() as u64, worker.peers() as u64);
            let sink = sink.clone();
            worker.dataflow::<u64, _, _>(|scope| {
                let batches =
                    source::<_, CapacityContainerBuilder<ArrowBatch>, _, _>(scope, "batches", |capability, _| {
                        let mut capability = Some(capability);
                        move |output| {
                            let Some(capability) = capability.take() else { return };
                            for batch in (0..BATCHES).filter(|batch| batch % peers == index) {
                                let rows = table(batch * ROWS..(batch + 1) * ROWS);
                                output.session(&capability).give_container(&mut ArrowBatch::from(rows));
                            }
                        }
                    });
                let keep = move |batch: &mut ArrowBatch| {
                    sink.lock().unwrap().push((index, batch.take().expect("no empty batch is sent")));
                };
                if rowwise {
                    batches.sink(by_row(numbers), "sink", move |(input, _)| input.for_each(|_, b| keep(b)));
                } else {
                    let pact = by_batch(|batch| numbers(batch)[0] / ROWS);
                    batches.sink(pact, "sink", move |(input, _)| input.for_each(|_, b| keep(b)));
                }
            });
        });
        drop(workers.unwrap());
        Arc::into_inner(received).unwrap().into_inner().unwrap()
    }

    /// The rows stand on the worker that their number names, and hold what was sent. Gives the numbers.
    fn check(received: Vec<(u64, RecordBatch)>, peers: u64, rowwise: bool) -> Vec<u64> {
        let mut all = Vec::new();
        for (worker, batch) in received {
            for (row, number) in numbers(&batch).into_iter().enumerate() {
                let route = if rowwise { number } else { number / ROWS };
                assert_eq!(route % peers, worker);
                assert_eq!(batch.slice(row, 1), table(number..number + 1));
                all.push(number);
            }
        }
        all
    }

    #[test]
    fn rows_reach_their_worker_within_a_process() {
        let in_memory = CommunicationConfig::Process(2);
        let in_bytes = CommunicationConfig::ProcessBinary(2);
        for (config, rowwise) in
            [(in_memory.clone(), true), (in_memory, false), (in_bytes.clone(), true), (in_bytes, false)]
        {
            let mut all = check(exchange(config, rowwise), 2, rowwise);
            all.sort();
            assert_eq!(all, (0..BATCHES * ROWS).collect::<Vec<_>>());
        }
    }

    /// This test starts itself as two processes, told apart by the environment.
    #[test]
    fn rows_reach_their_worker_across_processes() {
        const NAME: &str = "batch::tests::rows_reach_their_worker_across_processes";
        if let (Ok(process), Ok(hosts)) = (std::env::var("BATCH_PROCESS"), std::env::var("BATCH_HOSTS")) {
            let config = CommunicationConfig::Cluster {
                threads: 1,
                process: process.parse().unwrap(),
                addresses: hosts.split(',').map(str::to_owned).collect(),
                report: false,
                zerocopy: false,
            };
            let all = check(exchange(config, true), 2, true);
            eprintln!("\nreceived {} of sum {}", all.len(), all.iter().sum::<u64>());
            return;
        }
        let listeners = [TcpListener::bind("127.0.0.1:0").unwrap(), TcpListener::bind("127.0.0.1:0").unwrap()];
        let hosts = listeners.map(|listener| listener.local_addr().unwrap().to_string()).join(",");
        let children = ["0", "1"].map(|process| {
            Command::new(std::env::current_exe().unwrap())
                .args(["--exact", NAME, "--nocapture"])
                .envs([("BATCH_PROCESS", process), ("BATCH_HOSTS", &hosts)])
                .stdout(Stdio::null())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap()
        });
        let (mut rows, mut sum) = (0, 0);
        for child in children {
            let output = child.wait_with_output().unwrap();
            let text = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{text}");
            let line = text.lines().find_map(|line| line.strip_prefix("received ")).expect("each process reports");
            let (count, total) = line.split_once(" of sum ").unwrap();
            rows += count.parse::<u64>().unwrap();
            sum += total.parse::<u64>().unwrap();
        }
        assert_eq!((rows, sum), (BATCHES * ROWS, (0..BATCHES * ROWS).sum()));
    }

    #[test]
    fn a_received_batch_borrows_the_message() {
        let sent = ArrowBatch::from(table(0..1000));
        let mut bytes = Vec::new();
        sent.into_bytes(&mut bytes);
        assert_eq!((bytes.len(), bytes.len() % 8), (sent.length_in_bytes(), 0));
        let message = timely::bytes::arc::BytesMut::from(bytes).freeze();
        let memory = message.as_ptr_range();
        let received = ArrowBatch::from_bytes(message).take().unwrap();
        assert_eq!(received, table(0..1000));
        let values = received.column(0).to_data().buffers()[0].as_ptr();
        assert!(memory.contains(&values));
    }
}
