package ai.onnxruntime;

/** Signatures of onnxruntime's Java API (https://onnxruntime.ai/docs/api/java), without bodies: for type checks. */
public final class OrtEnvironment implements AutoCloseable {
    public static OrtEnvironment getEnvironment() { return null; }
    public OrtSession createSession(String path, OrtSession.SessionOptions options) throws OrtException { return null; }
    @Override public void close() {}
}
