import io.confluent.parallelconsumer.ParallelConsumerOptions;
import io.confluent.parallelconsumer.ParallelConsumerOptions.ProcessingOrder;
import io.confluent.parallelconsumer.ParallelStreamProcessor;
import java.nio.ByteOrder;
import java.nio.MappedByteBuffer;
import java.nio.channels.FileChannel;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;
import java.time.Duration;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.concurrent.locks.LockSupport;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;
import org.apache.kafka.common.serialization.StringDeserializer;

/**
 * A run of the Java Parallel Consumer, set up as its README says: {@code java ParallelConsumerRival topic=t ...}.
 * Compiled and started by rivals.py and rivals_run.py; work.py says what a record runs and what the journal is.
 * Prints at last how its run ended.
 */
public final class ParallelConsumerRival {
    private static final int PLACE_BYTES = 14;
    private static final int SLEEP_END = 20;
    private static final int LINE_BYTES = 30;
    private static final long LOOK_MS = 50;
    private static final Duration CLOSE = Duration.ofSeconds(20);

    private final Map<String, String> words;
    private final boolean sleeps;
    private final int records;
    private final MappedByteBuffer journal;
    private final AtomicInteger lines = new AtomicInteger();
    private final Set<Long> done = ConcurrentHashMap.newKeySet();

    private ParallelConsumerRival(Map<String, String> words) throws Exception {
        this.words = words;
        sleeps = words.get("work").equals("sleep");
        records = Integer.parseInt(words.get("records"));
        try (FileChannel file = FileChannel.open(Path.of(words.get("journal")),
                StandardOpenOption.CREATE_NEW, StandardOpenOption.READ, StandardOpenOption.WRITE)) {
            long bytes = (long) LINE_BYTES * Integer.parseInt(words.get("lines"));
            journal = file.map(FileChannel.MapMode.READ_WRITE, 0, bytes);
        }
        journal.order(ByteOrder.nativeOrder());
    }

    public static void main(String[] arguments) throws Exception {
        Map<String, String> words = new HashMap<>();
        for (String word : arguments) {
            int at = word.indexOf('=');
            words.put(word.substring(0, at), word.substring(at + 1));
        }
        System.out.println(new ParallelConsumerRival(words).run());
    }

    private String run() throws InterruptedException {
        Map<String, Object> settings = Map.of(
                "bootstrap.servers", words.get("bootstrap"),
                "group.id", words.get("group"),
                "auto.offset.reset", "earliest",
                "enable.auto.commit", false);
        var options = ParallelConsumerOptions.<String, byte[]>builder()
                .ordering(ProcessingOrder.KEY)
                .maxConcurrency(Integer.parseInt(words.get("concurrency")))
                .consumer(new KafkaConsumer<>(settings, new StringDeserializer(), new ByteArrayDeserializer()))
                .build();
        ParallelStreamProcessor<String, byte[]> processor =
                ParallelStreamProcessor.createEosStreamProcessor(options);
        processor.subscribe(List.of(words.get("topic")));
        processor.poll(context -> handle(context.getSingleConsumerRecord()));
        String end = ended();
        if (end.equals("all")) {
            processor.closeDrainFirst(CLOSE);
        } else {
            processor.closeDontDrainFirst(CLOSE);
        }
        return end;
    }

    private void handle(ConsumerRecord<String, byte[]> record) {
        long began = System.nanoTime();
        byte[] value = record.value();
        if (sleeps) {
            sleep(began, value);
        }
        int at = LINE_BYTES * lines.getAndIncrement();
        journal.put(at, value, 0, PLACE_BYTES);
        journal.putLong(at + PLACE_BYTES, began);
        journal.putLong(at + PLACE_BYTES + Long.BYTES, System.nanoTime());
        done.add(((long) record.partition() << 48) | record.offset());
    }

    private static void sleep(long began, byte[] value) {
        long micros = 0;
        for (int at = PLACE_BYTES; at < SLEEP_END; at++) {
            micros = 10 * micros + value[at] - '0';
        }
        long nanos = 1000 * micros;
        for (long left = nanos; left > 0; left = nanos - (System.nanoTime() - began)) {
            LockSupport.parkNanos(left);
        }
    }

    /** As work.py's {@code Progress.ended}. */
    private String ended() throws InterruptedException {
        double seconds = Double.parseDouble(words.get("seconds"));
        double startSeconds = Double.parseDouble(words.get("start_seconds"));
        double idleSeconds = Double.parseDouble(words.get("idle_seconds"));
        long changed = System.nanoTime();
        long first = 0;
        int seen = 0;
        while (done.size() < records) {
            long now = System.nanoTime();
            if (done.size() > seen) {
                first = first == 0 ? now : first;
                seen = done.size();
                changed = now;
            }
            if (first != 0 && (now - first) / 1e9 >= seconds) {
                return "late";
            }
            if ((now - changed) / 1e9 >= (first == 0 ? startSeconds : idleSeconds)) {
                return "idle";
            }
            Thread.sleep(LOOK_MS);
        }
        return "all";
    }
}
