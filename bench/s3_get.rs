//! What an object costs to read with the SDK and nothing else: the floor for a hit from the durable tier.
//!
//! `s3-get ENDPOINT BUCKET NAME RANGE COUNT CONCURRENCY RATE` reads the range of the object (`bytes=0-1023`) so often,
//! on one thread and so many times a second, and prints the CPU time of this process for each read, in microseconds. At the rate that it
//! is compared with: a busy process wakes up less often for each read.

use aws_config::{BehaviorVersion, Region};
use aws_sdk_s3::Client;
use aws_sdk_s3::config::{Builder, Credentials, RequestChecksumCalculation, ResponseChecksumValidation};

fn cpu_micros() -> f64 {
    let tasks = std::fs::read_dir("/proc/self/task").expect("Linux");
    let nanos: u64 = tasks
        .filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("schedstat")).ok())
        .filter_map(|text| text.split(' ').next()?.parse::<u64>().ok())
        .sum();
    #[expect(clippy::cast_precision_loss, reason = "a measurement")]
    let micros = nanos as f64 / 1000.0;
    micros
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [endpoint, bucket, name, range, count, concurrency, rate] = &args[..] else {
        panic!("usage: s3-get ENDPOINT BUCKET NAME RANGE COUNT CONCURRENCY RATE")
    };
    let rate: f64 = rate.parse().expect("a rate");
    let (count, concurrency): (u64, u64) = (count.parse().expect("a count"), concurrency.parse().expect("a count"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let shared = aws_config::defaults(BehaviorVersion::latest())
            .region(Region::new("us-east-1"))
            .endpoint_url(endpoint)
            .credentials_provider(Credentials::new("larder", "secret", None, None, "static"))
            .load()
            .await;
        let config = Builder::from(&shared)
            .force_path_style(true)
            .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
            .response_checksum_validation(ResponseChecksumValidation::WhenRequired);
        let client = Client::from_conf(config.build());
        let read = |count: u64| {
            let (client, bucket, name, range) = (client.clone(), bucket.clone(), name.clone(), range.clone());
            async move {
                #[expect(clippy::cast_precision_loss, reason = "a rate")]
                let pause = std::time::Duration::from_secs_f64(concurrency as f64 / rate);
                let mut due = tokio::time::interval(pause);
                due.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
                for _ in 0..count {
                    due.tick().await;
                    let object = client.get_object().bucket(&bucket).key(&name).range(&range).send().await;
                    let object = object.expect("an object");
                    assert!(!object.body.collect().await.expect("its body").into_bytes().is_empty());
                }
            }
        };
        read(100).await;
        let before = cpu_micros();
        let tasks: Vec<_> = (0..concurrency).map(|_| tokio::spawn(read(count / concurrency))).collect();
        for task in tasks {
            task.await.expect("no panic");
        }
        #[expect(clippy::cast_precision_loss, reason = "a measurement")]
        let each = (cpu_micros() - before) / (count / concurrency * concurrency) as f64;
        println!("{each:.1}");
    });
}
