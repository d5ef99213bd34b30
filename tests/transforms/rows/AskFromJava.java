import org.apache.beam.model.pipeline.v1.ExternalTransforms.ExternalConfigurationPayload;
import org.apache.beam.sdk.Pipeline;
import org.apache.beam.sdk.coders.RowCoder;
import org.apache.beam.sdk.options.PipelineOptions;
import org.apache.beam.sdk.options.PipelineOptionsFactory;
import org.apache.beam.sdk.schemas.Schema;
import org.apache.beam.sdk.schemas.SchemaTranslation;
import org.apache.beam.sdk.testing.CrashingRunner;
import org.apache.beam.sdk.transforms.Create;
import org.apache.beam.sdk.util.CoderUtils;
import org.apache.beam.sdk.util.construction.External;
import org.apache.beam.sdk.values.PCollection;
import org.apache.beam.sdk.values.Row;
import org.apache.beam.vendor.grpc.v1p69p0.com.google.protobuf.ByteString;

/** AskModel in a pipeline in Java: prints the columns that its rows have. Arguments: service, model, JSON schema. */
public class AskFromJava {
  public static void main(String[] arguments) throws Exception {
    Row args = Row.withSchema(Schema.of(Schema.Field.of("field0", Schema.FieldType.STRING))).addValue(arguments[1]).build();
    Row parameters = Row.withSchema(Schema.of(Schema.Field.of("max_tokens", Schema.FieldType.INT32))).addValue(9).build();
    Schema named =
        Schema.of(
            Schema.Field.of("prompt", Schema.FieldType.STRING),
            Schema.Field.of("schema", Schema.FieldType.STRING),
            Schema.Field.of("parameters", Schema.FieldType.row(parameters.getSchema())));
    Row kwargs = Row.withSchema(named).addValues("Mood of {text}?", arguments[2], parameters).build();
    Schema whole =
        Schema.of(
            Schema.Field.of("constructor", Schema.FieldType.STRING),
            Schema.Field.of("args", Schema.FieldType.row(args.getSchema())),
            Schema.Field.of("kwargs", Schema.FieldType.row(named)));
    Row row = Row.withSchema(whole).addValues("llmdo.AskModel", args, kwargs).build();
    byte[] payload =
        ExternalConfigurationPayload.newBuilder()
            .setSchema(SchemaTranslation.schemaToProto(whole, true))
            .setPayload(ByteString.copyFrom(CoderUtils.encodeToByteArray(RowCoder.of(whole), row)))
            .build()
            .toByteArray();

    PipelineOptions options = PipelineOptionsFactory.create();
    options.setRunner(CrashingRunner.class); // it is expanded, and not run
    Schema ticket = Schema.builder().addInt64Field("id").addStringField("text").build();
    PCollection<Row> rows =
        Pipeline.create(options).apply(Create.of(Row.withSchema(ticket).addValues(1L, "t").build()).withRowSchema(ticket));
    PCollection<Row> answers =
        rows.apply(External.of("beam:transforms:python:fully_qualified_named", payload, arguments[0]));
    for (Schema.Field field : ((RowCoder) answers.getCoder()).getSchema().getFields()) {
      String kind = field.getType().getNullable() ? "null" : "required";
      System.out.println("column " + field.getName() + " " + field.getType().getTypeName() + " " + kind);
    }
  }
}
