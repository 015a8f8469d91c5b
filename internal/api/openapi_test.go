package api

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/go-chi/chi/v5"
	"github.com/prometheus/client_golang/prometheus"

	"cardorder/client"
	"cardorder/internal/order"
	"cardorder/internal/store"
)

// answers says which Go type makes what a schema describes.
var answers = map[string]reflect.Type{
	"Order":                   reflect.TypeFor[orderView](),
	"OrderServices":           reflect.TypeFor[order.Services](),
	"OrderPaymentApplication": reflect.TypeFor[order.PaymentApplication](),
	"Attention":               reflect.TypeFor[attentionView](),
	"Parcel":                  reflect.TypeFor[shipmentView](),
	"OrderPage":               reflect.TypeFor[page[orderView]](),
	"Timeline":                reflect.TypeFor[page[timelineEntry]](),
	"TimelineEntry":           reflect.TypeFor[timelineEntry](),
	"TimelineEvent":           reflect.TypeFor[eventView](),
	"TimelineAttempt":         reflect.TypeFor[attemptView](),
	"TimelineNotification":    reflect.TypeFor[notificationView](),
	"TimelineContent":         reflect.TypeFor[contentView](),
	"Note":                    reflect.TypeFor[noteView](),
	"Problem":                 reflect.TypeFor[problem](),
	"Fault":                   reflect.TypeFor[fault](),
	"DryRun":                  reflect.TypeFor[dryRunView](),
	"Programs":                reflect.TypeFor[programsView](),
	"Program":                 reflect.TypeFor[ProgramView](),
	"OrderBatch":              reflect.TypeFor[batchView](),
	"OrderBatchPage":          reflect.TypeFor[page[batchView]](),
	"RowCounts":               reflect.TypeFor[store.BatchCounts](),
	"BatchDryRun":             reflect.TypeFor[dryBatchView](),
	"BatchResult":             reflect.TypeFor[resultView](),
	"BatchAction":             reflect.TypeFor[actionView](),
	"Lanes":                   reflect.TypeFor[lanesView](),
	"Lane":                    reflect.TypeFor[laneView](),
	"LaneAttention":           reflect.TypeFor[laneAttentionView](),
	"LanePause":               reflect.TypeFor[pauseView](),
	"LaneStop":                reflect.TypeFor[stopView](),
	"LaneLimits":              reflect.TypeFor[limitsView](),
	"LaneBacklog":             reflect.TypeFor[backlogView](),
	"LaneReplica":             reflect.TypeFor[replicaView](),
	"LaneBreaker":             reflect.TypeFor[breakerView](),
	"Hold":                    reflect.TypeFor[holdView](),
	"Change":                  reflect.TypeFor[changeView](),
	"ChangePage":              reflect.TypeFor[page[changeView]](),
	"Drift":                   reflect.TypeFor[driftView](),
	"DriftPage":               reflect.TypeFor[page[driftView]](),
	"DailyReport":             reflect.TypeFor[dailyReportView](),
	"DailyCount":              reflect.TypeFor[dailyCountView](),
	"Replay":                  reflect.TypeFor[replayView](),
	"Replays":                 reflect.TypeFor[replaysView](),
	"Readiness":               reflect.TypeFor[readiness](),
}

// requests says which Go type holds what a schema describes. What a request
// must have is tested with order.Decode instead.
var requests = map[string]reflect.Type{
	"OrderRequest":       reflect.TypeFor[order.Production](),
	"Services":           reflect.TypeFor[order.Services](),
	"PaymentApplication": reflect.TypeFor[order.PaymentApplication](),
	"CardDesign":         reflect.TypeFor[order.CardDesign](),
	"CardCarrierConfig":  reflect.TypeFor[order.CardCarrierConfig](),
	"PackagingConfig":    reflect.TypeFor[order.PackagingConfig](),
	"Shipment":           reflect.TypeFor[order.Shipment](),
	"Address":            reflect.TypeFor[order.Address](),
	"DuplicateOverride":  reflect.TypeFor[duplicateOverride](),
}

// clients says which type of the Go client is for what a schema describes.
var clients = map[string]reflect.Type{
	"OrderRequest":            reflect.TypeFor[client.NewOrder](),
	"Services":                reflect.TypeFor[client.Services](),
	"PaymentApplication":      reflect.TypeFor[client.PaymentApplication](),
	"SensitiveData":           reflect.TypeFor[client.SensitiveData](),
	"CardDesign":              reflect.TypeFor[client.CardDesign](),
	"CardCarrierConfig":       reflect.TypeFor[client.CardCarrierConfig](),
	"PackagingConfig":         reflect.TypeFor[client.PackagingConfig](),
	"Shipment":                reflect.TypeFor[client.Shipment](),
	"Address":                 reflect.TypeFor[client.Address](),
	"DuplicateOverride":       reflect.TypeFor[client.DuplicateOverride](),
	"Order":                   reflect.TypeFor[client.Order](),
	"OrderServices":           reflect.TypeFor[client.Services](),
	"OrderPaymentApplication": reflect.TypeFor[client.PaymentApplication](),
	"Attention":               reflect.TypeFor[client.Attention](),
	"Parcel":                  reflect.TypeFor[client.Parcel](),
	"DryRun":                  reflect.TypeFor[client.DryRun](),
	"TimelineEntry":           reflect.TypeFor[client.TimelineEntry](),
	"TimelineEvent":           reflect.TypeFor[client.Event](),
	"TimelineAttempt":         reflect.TypeFor[client.Attempt](),
	"TimelineNotification":    reflect.TypeFor[client.Notification](),
	"TimelineContent":         reflect.TypeFor[client.NotificationContent](),
	"Note":                    reflect.TypeFor[client.Note](),
	"HoldOrderRequest":        reflect.TypeFor[client.HoldRequest](),
	"ReleaseOrderRequest":     reflect.TypeFor[client.ReleaseRequest](),
	"ReorderRequest":          reflect.TypeFor[client.Reorder](),
	"Programs":                reflect.TypeFor[client.Programs](),
	"Program":                 reflect.TypeFor[client.Program](),
	"OrderBatch":              reflect.TypeFor[client.Batch](),
	"RowCounts":               reflect.TypeFor[client.BatchRows](),
	"BatchDryRun":             reflect.TypeFor[client.BatchDryRun](),
	"BatchResult":             reflect.TypeFor[client.BatchResult](),
	"BatchAction":             reflect.TypeFor[client.BatchChange](),
	"RetryRequest":            reflect.TypeFor[client.Retry](),
	"Lane":                    reflect.TypeFor[client.Lane](),
	"LaneAttention":           reflect.TypeFor[client.Attention](),
	"LanePause":               reflect.TypeFor[client.LanePause](),
	"LaneStop":                reflect.TypeFor[client.LaneStop](),
	"LaneLimits":              reflect.TypeFor[client.LaneLimits](),
	"LaneBacklog":             reflect.TypeFor[client.LaneBacklog](),
	"LaneReplica":             reflect.TypeFor[client.Replica](),
	"LaneBreaker":             reflect.TypeFor[client.Breaker](),
	"Hold":                    reflect.TypeFor[client.Hold](),
	"Change":                  reflect.TypeFor[client.Change](),
	"ChangeRequest":           reflect.TypeFor[client.NewChange](),
	"Drift":                   reflect.TypeFor[client.Drift](),
	"DailyReport":             reflect.TypeFor[client.DailyReport](),
	"DailyCount":              reflect.TypeFor[client.DailyCount](),
	"Replay":                  reflect.TypeFor[client.Replayed](),
	"Replays":                 reflect.TypeFor[client.Replays](),
	"ReplayRequest":           reflect.TypeFor[client.Replay](),
	"Problem":                 reflect.TypeFor[client.Problem](),
	"Fault":                   reflect.TypeFor[client.Fault](),
}

// ours are the members of an order that are not D1's, and so not in order.Production.
var ours = []string{"cardId", "metadata", "urgent", "hold", "notBefore", "duplicateOverride", "replacesOrderId", "sensitiveData"}

// handmade are object schemas without a struct: a map, card data that is never
// decoded, a row, which is compared with an order, and what actions are sent with.
var handmade = []string{"Metadata", "SensitiveData", "Health", "BatchRow", "PauseRequest", "RetryRequest", "ChangeRequest",
	"HoldOrderRequest", "ReleaseOrderRequest", "NoteRequest", "ClearRequest", "ReorderRequest", "ReplayRequest"}

// constants are the types whose constants are a schema's values.
var constants = map[reflect.Type]string{
	reflect.TypeFor[order.Status]():        "../order",
	reflect.TypeFor[order.Channel]():       "../order",
	reflect.TypeFor[order.Issuance]():      "../order",
	reflect.TypeFor[order.Attention]():     "../order",
	reflect.TypeFor[order.LaneAttention](): "../order",
	reflect.TypeFor[order.HoldReason]():    "../order",
	reflect.TypeFor[order.ChangeType]():    "../order",
	reflect.TypeFor[order.ChangeState]():   "../order",
	reflect.TypeFor[order.ChangeReason]():  "../order",
	reflect.TypeFor[store.EventType]():     "../store",
	reflect.TypeFor[store.CauseKind]():     "../store",
	reflect.TypeFor[store.AttemptKind]():   "../store",
	reflect.TypeFor[store.BatchStatus]():   "../store",
	reflect.TypeFor[store.RowOutcome]():    "../store",
	reflect.TypeFor[laneState]():           ".",
}

func document(t *testing.T) *openapi3.T {
	t.Helper()
	doc, err := openapi3.NewLoader().LoadFromData(openAPI)
	if err != nil {
		t.Fatal(err)
	}
	return doc
}

// The document is OpenAPI, and its examples are what their schemas say.
func TestDocumentIsValid(t *testing.T) {
	t.Parallel()
	doc := document(t)
	if err := doc.Validate(t.Context(), openapi3.EnableExamplesValidation(), openapi3.AllowExtensionsWithRef()); err != nil {
		t.Fatal(err)
	}
	for _, o := range callsOf(doc) {
		for media, schema := range bodies(o.Operation) {
			item := itemSchema(t, doc, schema)
			if item == nil {
				continue
			}
			for name, example := range schema.Examples {
				for line := range strings.Lines(example.Value.Value.(string)) {
					if err := item.VisitJSON(fromJSON(t, line)); err != nil {
						t.Errorf("%s %s, example %s: %v", o.id, media, name, err)
					}
				}
			}
		}
	}
}

// itemSchema is the schema of a line of a body of many lines.
func itemSchema(t *testing.T, doc *openapi3.T, media *openapi3.MediaType) *openapi3.Schema {
	t.Helper()
	item, ok := media.Extensions["x-itemSchema"].(map[string]any)
	if !ok {
		return nil
	}
	ref, _ := item["$ref"].(string)
	schema := doc.Components.Schemas[strings.TrimPrefix(ref, "#/components/schemas/")]
	if schema == nil {
		t.Fatalf("x-itemSchema leads nowhere: %q", ref)
	}
	return schema.Value
}

type call struct {
	*openapi3.Operation
	id string // method and path
}

func callsOf(doc *openapi3.T) []call {
	var list []call
	for path, item := range doc.Paths.Map() {
		for method, o := range item.Operations() {
			list = append(list, call{o, method + " " + path})
		}
	}
	return list
}

// bodies lists the bodies of the request and of every answer by a name.
func bodies(o *openapi3.Operation) map[string]*openapi3.MediaType {
	all := make(map[string]*openapi3.MediaType)
	if o.RequestBody != nil {
		for media, body := range o.RequestBody.Value.Content {
			all["request "+media] = body
		}
	}
	for status, response := range o.Responses.Map() {
		for media, body := range response.Value.Content {
			all[status+" "+media] = body
		}
	}
	return all
}

func fromJSON(t *testing.T, text string) any {
	t.Helper()
	var v any
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		t.Fatal(err)
	}
	return v
}

func toJSON(t *testing.T, v any) []byte {
	t.Helper()
	text, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// orderExamples are the document's examples of orders.
func orderExamples(t *testing.T, doc *openapi3.T) map[string]map[string]any {
	t.Helper()
	all := make(map[string]map[string]any)
	content := doc.Paths.Find("/v1/issuers/{issuerId}/orders").Post.RequestBody.Value.Content
	for name, example := range content["application/json"].Examples {
		all[name] = example.Value.Value.(map[string]any)
	}
	return all
}

var anyRules = &order.Rules{}

// The examples of orders are accepted, alone and as rows of a batch.
func TestExamplesAreAccepted(t *testing.T) {
	t.Parallel()
	doc := document(t)
	accept := func(name string, o map[string]any) {
		t.Helper()
		if _, faults := order.Decode(toJSON(t, o), anyRules); len(faults) > 0 {
			t.Errorf("%s: %v", name, faults)
		}
	}
	channels := make(map[any]bool)
	for name, o := range orderExamples(t, doc) {
		accept(name, o)
		channels[o["distributionChannel"]] = true
	}
	if len(channels) != 3 {
		t.Errorf("examples of the channels %v only", channels)
	}
	upload := doc.Paths.Find("/v1/issuers/{issuerId}/order-batches").Post.RequestBody.Value.Content
	var examples []map[string]any
	for line := range strings.Lines(upload["application/x-ndjson"].Examples["ndjson"].Value.Value.(string)) {
		examples = append(examples, fromJSON(t, line).(map[string]any))
	}
	records, err := csv.NewReader(strings.NewReader(upload["text/csv"].Examples["csv"].Value.Value.(string))).ReadAll()
	if err != nil {
		t.Fatal(err)
	}
	for _, record := range records[1:] {
		row := make(map[string]any)
		for i, column := range records[0] {
			if record[i] != "" {
				set(row, "/"+strings.ReplaceAll(column, ".", "/"), record[i])
			}
		}
		if err := doc.Components.Schemas["BatchRow"].Value.VisitJSON(row); err != nil {
			t.Errorf("a row of the CSV: %v", err)
		}
		examples = append(examples, row)
	}
	if len(examples) < 4 {
		t.Errorf("only %d example rows", len(examples))
	}
	for i, row := range examples {
		if _, _, faults := order.DecodeRow(toJSON(t, row), anyRules); len(faults) > 0 {
			t.Errorf("row %d: %v", i, faults)
		}
	}
}

// set changes the value at a pointer, making objects on the way; nil takes it away.
func set(o map[string]any, pointer string, value any) {
	parts := strings.Split(pointer[1:], "/")
	for _, part := range parts[:len(parts)-1] {
		inner, ok := o[part].(map[string]any)
		if !ok {
			inner = make(map[string]any)
			o[part] = inner
		}
		o = inner
	}
	if last := parts[len(parts)-1]; value == nil {
		delete(o, last)
	} else {
		o[last] = value
	}
}

// What the document says of a member of an order is what order.Decode does.
func TestBounds(t *testing.T) {
	t.Parallel()
	doc := document(t)
	b := &bounds{T: t, examples: orderExamples(t, doc)}
	b.object("", doc.Components.Schemas["OrderRequest"].Value)
	if b.checks < 200 {
		t.Errorf("only %d checks", b.checks)
	}
}

type bounds struct {
	*testing.T
	examples map[string]map[string]any
	checks   int
}

// with lists the examples that have the object around a member.
func (b *bounds) with(pointer string) map[string]map[string]any {
	some := make(map[string]map[string]any)
	for name, example := range b.examples {
		parent := any(example)
		parts := strings.Split(pointer, "/")
		for _, part := range parts[1 : len(parts)-1] {
			object, _ := parent.(map[string]any)
			parent = object[part]
		}
		if parent != nil {
			some[name] = example
		}
	}
	return some
}

// decode changes an example and returns the faults of it.
func (b *bounds) decode(example map[string]any, pointer string, value any) order.Faults {
	b.Helper()
	b.checks++
	changed := fromJSON(b.T, string(toJSON(b.T, example))).(map[string]any)
	set(changed, pointer, value)
	_, faults := order.Decode(toJSON(b.T, changed), anyRules)
	return faults
}

// accepts checks that a value is taken in one of the examples.
func (b *bounds) accepts(pointer string, value any) {
	b.Helper()
	var faults order.Faults
	for _, example := range b.examples {
		if faults = b.decode(example, pointer, value); len(faults) == 0 {
			return
		}
	}
	b.Errorf("%s: the document allows %.80q, and no example takes it: %v", pointer, fmt.Sprint(value), faults)
}

// refuses checks that a value is refused with one of the codes, wherever it may stand.
func (b *bounds) refuses(pointer string, value any, codes ...string) {
	b.Helper()
	for name, example := range b.with(pointer) {
		faults := b.decode(example, pointer, value)
		if !slices.ContainsFunc(faults, func(f order.Fault) bool { return f.Pointer == pointer && slices.Contains(codes, f.Code) }) {
			b.Errorf("%s: the document forbids %.80q, and in %s it gets %v, not %v", pointer, fmt.Sprint(value), name, faults, codes)
		}
	}
}

func (b *bounds) object(pointer string, schema *openapi3.Schema) {
	if may := schema.AdditionalProperties.Has; may != nil && !*may {
		b.refuses(pointer+"/nobody", "x", order.CodeUnknownMember)
	}
	for name, member := range schema.Properties {
		at := pointer + "/" + name
		if slices.Contains(schema.Required, name) {
			b.refuses(at, nil, order.CodeRequired)
		} else if name != "encryptedData" { // it or sensitiveData
			b.accepts(at, nil)
		}
		b.value(at, member.Value)
	}
}

func (b *bounds) value(at string, schema *openapi3.Schema) {
	switch {
	case schema.Type.Is("object") && len(schema.Properties) > 0:
		b.refuses(at, "x", order.CodeWrongType)
		b.object(at, schema)
	case schema.Type.Is("object"):
		b.refuses(at, "x", order.CodeWrongType)
		b.accepts(at, many(int(*schema.MaxProps)))
		b.refuses(at, many(int(*schema.MaxProps)+1), order.CodeTooMany)
		b.value(at+"/name", schema.AdditionalProperties.Schema.Value)
	case schema.Type.Is("array"):
		b.refuses(at, "x", order.CodeWrongType)
		longest := strings.Repeat("a", int(*schema.Items.Value.MaxLength))
		b.accepts(at, slices.Repeat([]any{longest}, int(*schema.MaxItems)))
		b.refuses(at, slices.Repeat([]any{"a"}, int(*schema.MaxItems)+1), order.CodeTooMany)
	case schema.Type.Is("boolean"):
		b.accepts(at, true)
		b.accepts(at, false)
		b.refuses(at, "true", order.CodeWrongType)
	case strings.HasPrefix(at, "/sensitiveData/"):
		b.refuses(at, map[string]any{"a": "b"}, order.CodeWrongType, order.CodeInvalidFormat)
		if example, ok := schema.Example.(string); ok {
			b.accepts(at, example)
		}
	case schema.Type.Is("string"):
		b.text(at, schema)
	default:
		b.Errorf("%s: no test for the type %v", at, schema.Type)
	}
}

func (b *bounds) text(at string, schema *openapi3.Schema) {
	b.refuses(at, 7, order.CodeWrongType)
	b.refuses(at, "a\u0000", order.CodeInvalidCharacter)
	b.refuses(at, "", order.CodeInvalidFormat, order.CodeInvalidValue)
	for _, value := range schema.Enum {
		b.accepts(at, value)
	}
	if len(schema.Enum) > 0 {
		b.refuses(at, "NOTHING", order.CodeInvalidValue)
	}
	if example, ok := schema.Example.(string); ok {
		b.accepts(at, example)
	}
	if schema.MaxLength == nil {
		return
	}
	length := int(*schema.MaxLength)
	if strings.HasSuffix(at, "/firstName") || strings.HasSuffix(at, "/lastName") {
		if length = 26; !strings.Contains(schema.Description, "at most 26 characters") {
			b.Errorf("%s: the document does not tell the default of programs", at)
		}
	}
	longest := strings.Repeat("a", length)
	if strings.Contains(schema.Pattern, `\.`) { // a JWE
		longest = "a.a.a.a." + longest[8:]
	}
	pattern := regexp.MustCompile(schema.Pattern)
	if !pattern.MatchString(longest) {
		b.Fatalf("%s: the longest value does not match the pattern", at)
	}
	b.accepts(at, longest)
	b.refuses(at, longest+"a", order.CodeTooLong, order.CodeInvalidFormat)
	for _, value := range []string{" ", "a b", "é", "a/b", "1"} {
		if pattern.MatchString(value) {
			b.accepts(at, value)
		} else {
			b.refuses(at, value, order.CodeInvalidFormat)
		}
	}
}

// many is an object of n members, none of which looks like a card number.
func many(n int) map[string]any {
	m := make(map[string]any, n)
	for i := range n {
		m["name"+strconv.Itoa(i)] = "x"
	}
	return m
}

// The members of answers and requests are those of the Go types, both ways.
func TestTypes(t *testing.T) {
	t.Parallel()
	doc := document(t)
	c := &comparison{T: t, doc: doc}
	for name, typ := range answers {
		c.strict = true
		c.object(name, typ, c.schema(name))
	}
	for name, typ := range requests {
		c.strict = false
		schema := c.schema(name)
		if name == "OrderRequest" {
			for _, member := range ours {
				if schema.Properties[member] == nil {
					t.Errorf("OrderRequest lacks %s", member)
				}
			}
			schema = without(schema, ours...)
		}
		c.object(name, typ, schema)
	}
	for name, typ := range clients {
		c.object(name, typ, without(c.schema(name), "dryRun")) // which the client's types say by their names
	}
	for name, schema := range doc.Components.Schemas {
		known := answers[name] != nil || requests[name] != nil || slices.Contains(handmade, name)
		if schema.Value.Type.Is("object") && !known {
			t.Errorf("no Go type is named for the schema %s", name)
		}
	}
	row, whole := c.schema("BatchRow"), c.schema("OrderRequest")
	want := append(slices.DeleteFunc(slices.Collect(maps.Keys(whole.Properties)), func(s string) bool { return s == "sensitiveData" }), "idempotencyKey")
	if got := slices.Sorted(maps.Keys(row.Properties)); !slices.Equal(got, slices.Sorted(slices.Values(want))) {
		t.Errorf("a row has the members %v, want those of an order", got)
	}
}

// without is a schema that lacks some of its members.
func without(schema *openapi3.Schema, members ...string) *openapi3.Schema {
	rest := *schema
	rest.Properties = maps.Clone(rest.Properties)
	for _, member := range members {
		delete(rest.Properties, member)
	}
	return &rest
}

type comparison struct {
	*testing.T
	doc    *openapi3.T
	strict bool // whether what must be there is compared too
}

func (c *comparison) schema(name string) *openapi3.Schema {
	c.Helper()
	schema := c.doc.Components.Schemas[name]
	if schema == nil {
		c.Fatalf("the document has no schema %s", name)
	}
	return schema.Value
}

// goMember is a field as JSON shows it.
type goMember struct {
	typ       reflect.Type
	omitempty bool
}

func goMembers(typ reflect.Type) map[string]goMember {
	all := make(map[string]goMember)
	for i := range typ.NumField() {
		f := typ.Field(i)
		name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case f.Anonymous && name == "":
			maps.Copy(all, goMembers(f.Type))
		case name != "-":
			all[name] = goMember{f.Type, strings.Contains(options, "omit")}
		}
	}
	return all
}

func (c *comparison) object(at string, typ reflect.Type, schema *openapi3.Schema) {
	c.Helper()
	members := goMembers(typ)
	for name, m := range members {
		member := schema.Properties[name]
		if member == nil {
			c.Errorf("%s.%s is in %v and not in the document", at, name, typ)
			continue
		}
		if c.strict && slices.Contains(schema.Required, name) == m.omitempty {
			c.Errorf("%s.%s: left out when empty: %v in %v, and required: %v in the document", at, name, m.omitempty, typ, !m.omitempty)
		}
		if c.strict && (m.typ.Kind() == reflect.Pointer && !m.omitempty) != member.Value.Nullable {
			c.Errorf("%s.%s: nullable is %v in the document", at, name, member.Value.Nullable)
		}
		c.value(at+"."+name, m.typ, member)
	}
	for name := range schema.Properties {
		if _, ok := members[name]; !ok {
			c.Errorf("%s.%s is in the document and not in %v", at, name, typ)
		}
	}
}

func (c *comparison) value(at string, typ reflect.Type, ref *openapi3.SchemaRef) {
	c.Helper()
	if typ.Kind() == reflect.Pointer {
		typ = typ.Elem()
	}
	name, schema := strings.TrimPrefix(ref.Ref, "#/components/schemas/"), ref.Value
	if answers[name] != nil || requests[name] != nil || clients[name] != nil { // compared by itself
		if answers[name] != typ && requests[name] != typ && clients[name] != typ {
			c.Errorf("%s is a %v, which %s is not", at, typ, name)
		}
		return
	}
	want := ""
	switch {
	case typ == reflect.TypeFor[json.RawMessage]():
		if schema.Type != nil {
			c.Errorf("%s may be anything", at)
		}
		return
	case typ == reflect.TypeFor[time.Time]():
		if !schema.Type.Is("string") || schema.Format != "date-time" {
			c.Errorf("%s is a time", at)
		}
		return
	case typ.Kind() == reflect.String:
		want = "string"
	case typ.Kind() == reflect.Bool:
		want = "boolean"
	case typ.Kind() == reflect.Int, typ.Kind() == reflect.Int64:
		want = "integer"
	case typ.Kind() == reflect.Slice:
		want = "array"
	case typ.Kind() == reflect.Struct, typ.Kind() == reflect.Map:
		want = "object"
	}
	if schema.Type == nil || !schema.Type.Is(want) {
		c.Errorf("%s is a %v in Go and %v in the document", at, typ, schema.Type)
		return
	}
	switch {
	case typ.Kind() == reflect.Slice:
		c.value(at+"[]", typ.Elem(), schema.Items)
	case typ.Kind() == reflect.Map:
		c.value(at+"{}", typ.Elem(), schema.AdditionalProperties.Schema)
	case typ.Kind() == reflect.Struct:
		c.object(at, typ, schema)
	case constants[typ] != "":
		got, want := texts(schema.Enum), constantsOf(c.T, constants[typ], isType(typ.Name()))
		if strings.HasSuffix(at, ".endsAt") || at == "DryRun.outcome" { // these are some of them
			want = slices.DeleteFunc(want, func(s string) bool { return !slices.Contains(got, s) })
		}
		if !slices.Equal(got, want) {
			c.Errorf("%s is one of\n%v in the document, of\n%v in Go", at, got, want)
		}
	}
}

func texts(values []any) []string {
	list := make([]string, len(values))
	for i, v := range values {
		list[i] = fmt.Sprint(v)
	}
	slices.Sort(list)
	return list
}

func isType(name string) func(*ast.ValueSpec) bool {
	return func(spec *ast.ValueSpec) bool {
		typ, ok := spec.Type.(*ast.Ident)
		return ok && typ.Name == name
	}
}

// sources parses the Go files of a folder, those of tests apart.
func sources(t *testing.T, folder string) []*ast.File {
	t.Helper()
	var files []*ast.File
	names, err := fs.Glob(os.DirFS(folder), "*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), folder+"/"+name, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, file)
	}
	return files
}

// constantsOf lists the texts of a package's constants, sorted.
func constantsOf(t *testing.T, folder string, wanted func(*ast.ValueSpec) bool) []string {
	t.Helper()
	var list []string
	for _, file := range sources(t, folder) {
		ast.Inspect(file, func(n ast.Node) bool {
			spec, ok := n.(*ast.ValueSpec)
			if !ok || !wanted(spec) || len(spec.Values) != 1 {
				return true
			}
			if value, ok := text(spec.Values[0]); ok {
				list = append(list, value)
			}
			return true
		})
	}
	slices.Sort(list)
	return list
}

func text(e ast.Expr) (string, bool) {
	literal, ok := e.(*ast.BasicLit)
	if !ok || literal.Kind != token.STRING {
		return "", false
	}
	value, err := strconv.Unquote(literal.Value)
	return value, err == nil
}

// Fault codes are those of order, both ways.
func TestFaultCodes(t *testing.T) {
	t.Parallel()
	isCode := func(spec *ast.ValueSpec) bool {
		return regexp.MustCompile(`^[Cc]ode[A-Z]`).MatchString(spec.Names[0].Name)
	}
	inGo := append(constantsOf(t, "../order", isCode), constantsOf(t, ".", isCode)...)
	sameNames(t, inGo, texts(document(t).Components.Schemas["FaultCode"].Value.Enum))
}

// sameNames compares what Go has with what the document has.
func sameNames(t *testing.T, inGo, inDocument []string) {
	t.Helper()
	for _, name := range inGo {
		if !slices.Contains(inDocument, name) {
			t.Errorf("%s is not in the document", name)
		}
	}
	for _, name := range inDocument {
		if !slices.Contains(inGo, name) {
			t.Errorf("%s is in the document only", name)
		}
	}
}

// Problems are those that the code makes, and each has an example as it is.
func TestProblems(t *testing.T) {
	t.Parallel()
	const prefix = problemTypes
	statuses := make(map[string]int)
	for code := 400; code < 600; code++ {
		statuses["Status"+strings.ReplaceAll(http.StatusText(code), " ", "")] = code
	}
	type made struct {
		status      int
		name, title string
	}
	var all []made
	for _, file := range sources(t, ".") {
		ast.Inspect(file, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok || len(call.Args) != 4 {
				return true
			}
			if f, ok := call.Fun.(*ast.Ident); !ok || f.Name != "newProblem" {
				return true
			}
			status, ok := call.Args[0].(*ast.SelectorExpr)
			name, named := text(call.Args[1])
			title, titled := text(call.Args[2])
			if !ok || !named || !titled {
				t.Error("newProblem is called with what this test cannot read: the status by its name in net/http, the name and the title as they are")
				return true
			}
			all = append(all, made{statuses[status.Sel.Name], name, title})
			return true
		})
	}
	doc := document(t)
	var inGo, inDocument []string
	for _, m := range all {
		inGo = append(inGo, m.name)
	}
	for _, name := range texts(doc.Components.Schemas["ProblemType"].Value.Enum) {
		inDocument = append(inDocument, strings.TrimPrefix(name, prefix))
	}
	sameNames(t, inGo, inDocument)
	examples := make(map[made]bool)
	for name, e := range doc.Components.Examples {
		value, ok := e.Value.Value.(map[string]any)
		typ, _ := value["type"].(string)
		if !ok || !strings.HasPrefix(typ, prefix) {
			continue
		}
		m := made{int(value["status"].(float64)), strings.TrimPrefix(typ, prefix), value["title"].(string)}
		if examples[m] = true; !slices.Contains(all, m) {
			t.Errorf("the code does not make what the example %s shows: %v", name, m)
		}
	}
	for _, m := range all {
		if !examples[m] {
			t.Errorf("no example shows %v", m)
		}
	}
}

// Limits that stand in the document's texts and parameters are the code's.
func TestLimits(t *testing.T) {
	t.Parallel()
	doc := document(t)
	limit := doc.Components.Parameters["Limit"].Value.Schema.Value
	if *limit.Max != maxLimit || fmt.Sprint(limit.Default) != strconv.Itoa(defaultLimit) {
		t.Errorf("limit: at most %v, default %v", *limit.Max, limit.Default)
	}
	size := strconv.Itoa(maxOrderBody>>10) + " KiB"
	if post := doc.Paths.Find("/v1/issuers/{issuerId}/orders").Post; !strings.Contains(post.RequestBody.Value.Description, size) {
		t.Errorf("an order has at most %s", size)
	}
	if !strings.Contains(errTooLarge.Detail, strconv.Itoa(maxOrderBody)) {
		t.Errorf("too-large says %q", errTooLarge.Detail)
	}
	key := doc.Components.Schemas["IdempotencyKey"].Value
	for _, k := range []string{"", "a", "a b", "é", "a\n", "!~", strings.Repeat("k", int(*key.MaxLength)), strings.Repeat("k", int(*key.MaxLength)+1)} {
		if (key.VisitJSON(k) == nil) != (order.IdempotencyKey(k) == "") {
			t.Errorf("the document and the code differ on the key %q", k)
		}
	}
	header := doc.Components.Parameters["CorrelationId"].Value.Schema.Value
	if header.Pattern != correlationPattern.String() {
		t.Errorf("the pattern of correlation ids is %s", header.Pattern)
	}
}

// Orders can be listed by every attention.
func TestAttentionFilter(t *testing.T) {
	t.Parallel()
	var filter *openapi3.Schema
	for _, p := range document(t).Paths.Find("/v1/issuers/{issuerId}/orders").Get.Parameters {
		if p.Value.Name == "attention" {
			filter = p.Value.Schema.Value
		}
	}
	sameNames(t, append(constantsOf(t, "../order", isType("Attention")), "true"), texts(filter.Enum))
}

// The warnings and the rules of programs that the texts name are the code's.
func TestNamesInTexts(t *testing.T) {
	t.Parallel()
	doc := document(t)
	quoted := func(text string) (names []string) {
		for _, m := range regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(text, -1) {
			names = append(names, m[1])
		}
		return names
	}
	isWarning := func(spec *ast.ValueSpec) bool {
		return regexp.MustCompile(`^[Ww]arning[A-Z]`).MatchString(spec.Names[0].Name)
	}
	warnings := quoted(doc.Components.Schemas["Order"].Value.Properties["warnings"].Value.Description)
	for _, warning := range append(constantsOf(t, "../order", isWarning), constantsOf(t, ".", isWarning)...) {
		if !slices.ContainsFunc(warnings, func(s string) bool { return strings.HasPrefix(s, warning) }) {
			t.Errorf("the warning %s is not in the document", warning)
		}
	}
	known := map[string]bool{"outside-program": true, "cardProducts": true}
	for _, typ := range []reflect.Type{reflect.TypeFor[ProgramView](), reflect.TypeFor[profileView]()} {
		for name := range goMembers(typ) {
			known[name] = true
		}
	}
	for _, rule := range quoted(doc.Components.Schemas["Fault"].Value.Properties["rule"].Value.Description) {
		if !known[rule] {
			t.Errorf("programs have no setting %s", rule)
		}
	}
}

// testHandler serves core banking, for one issuer and a client without any scope.
func testHandler() http.Handler {
	const issuer = "ISSUER0001"
	return NewHandler(Config{
		Clients: []Client{{Name: "nobody", TokenHash: sha256.Sum256([]byte("nobody")), Issuers: []string{issuer}}},
		Issuers: []Issuer{{ID: issuer}},
		Metrics: NewMetrics(prometheus.NewRegistry(), nil),
		Log:     slog.New(slog.DiscardHandler),
		Ready:   func(context.Context) error { return errors.New("not in this test") },
	})
}

// Every route is in the document, and the other way round, with the same scope.
func TestRoutes(t *testing.T) {
	t.Parallel()
	handler := testHandler()
	var routed []string
	err := chi.Walk(handler.(chi.Routes), func(method, route string, _ http.Handler, _ ...func(http.Handler) http.Handler) error {
		if method != http.MethodHead { // which goes without saying
			routed = append(routed, method+" "+route)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	doc := document(t)
	var inDocument []string
	for _, o := range callsOf(doc) {
		inDocument = append(inDocument, o.id)
	}
	sameNames(t, routed, inDocument)
	scope := regexp.MustCompile(`lacks the scope ([a-z:]+)\.`)
	for _, o := range callsOf(doc) {
		method, path, _ := strings.Cut(o.id, " ")
		for name, value := range map[string]string{
			"issuerId": "ISSUER0001", "orderId": "01990a68-77ec-74e1-b66d-6c97bb9262a5", "batchId": "01990a68-77ec-74e1-b66d-6c97bb9262a5", "lane": "d1", "code": "failed",
			"changeId": "01990a68-77ec-74e1-b66d-6c97bb9262a5", "notificationId": "1",
		} {
			path = strings.ReplaceAll(path, "{"+name+"}", value)
		}
		ask := func(token string) *httptest.ResponseRecorder {
			r := httptest.NewRequest(method, path, nil)
			if token != "" {
				r.Header.Set("Authorization", "Bearer "+token)
			}
			w := httptest.NewRecorder()
			handler.ServeHTTP(w, r)
			return w
		}
		want, _ := o.Extensions["x-scope"].(string)
		if open := o.Security != nil && len(*o.Security) == 0; open != (ask("").Code != http.StatusUnauthorized) || open != (want == "") {
			t.Errorf("%s: needs no token in the document: %v; answers %d without one; scope %q", o.id, open, ask("").Code, want)
		}
		if want == "" {
			continue
		}
		found := scope.FindStringSubmatch(ask("nobody").Body.String())
		if len(found) != 2 || found[1] != want {
			t.Errorf("%s: asks for the scope %v, not for %s", o.id, found, want)
		}
		if !strings.Contains(o.Description, "`"+want+"`") {
			t.Errorf("%s: the description does not name its scope", o.id)
		}
	}
	bearer := doc.Components.SecuritySchemes["bearer"].Value.Description
	for _, s := range Scopes {
		if !strings.Contains(bearer, "`"+s+"`") {
			t.Errorf("the description of the token lacks %s", s)
		}
	}
}

// The document and the page need no token and nothing from elsewhere.
func TestDocumentAndPageAreServed(t *testing.T) {
	t.Parallel()
	handler := testHandler()
	ask := func(path, tag string) *httptest.ResponseRecorder {
		r := httptest.NewRequest(http.MethodGet, path, nil)
		r.Header.Set("If-None-Match", tag)
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, r)
		return w
	}
	for path, media := range map[string]string{"/openapi.yaml": "application/yaml", "/docs": "text/html; charset=utf-8"} {
		w := ask(path, "")
		if w.Code != http.StatusOK || w.Header().Get("Content-Type") != media {
			t.Errorf("%s: %d %s", path, w.Code, w.Header().Get("Content-Type"))
		}
		if again := ask(path, w.Header().Get("ETag")); again.Code != http.StatusNotModified || again.Body.Len() > 0 {
			t.Errorf("%s: %d for the copy at hand", path, again.Code)
		}
	}
	if !bytes.Equal(ask("/openapi.yaml", "").Body.Bytes(), openAPI) {
		t.Error("/openapi.yaml is not the document")
	}
	w := ask("/docs", "")
	if policy := w.Header().Get("Content-Security-Policy"); !strings.HasPrefix(policy, "default-src 'none';") {
		t.Errorf("policy %q", policy)
	}
	page := w.Body.String()
	for _, foreign := range []string{"<script", "<link", "<img", "<iframe", " src=", "@import", "url(", `href="http`, "ZgotmplZ", "$ref"} {
		if strings.Contains(page, foreign) {
			t.Errorf("the page has %s", foreign)
		}
	}
	doc := document(t)
	ids := []string{"top", "schemas"}
	for _, o := range callsOf(doc) {
		ids = append(ids, o.OperationID)
	}
	ids = append(ids, slices.Collect(maps.Keys(doc.Components.Schemas))...)
	for _, id := range ids {
		if strings.Count(page, `id="`+id+`"`) != 1 {
			t.Errorf("the page has not one place %s", id)
		}
	}
	for _, link := range regexp.MustCompile(`href="#([^"]*)"`).FindAllStringSubmatch(page, -1) {
		if !slices.Contains(ids, link[1]) {
			t.Errorf("the page links to %s, which is not there", link[1])
		}
	}
	for name := range doc.Components.Examples {
		if summary := doc.Components.Examples[name].Value.Summary; !strings.Contains(page, strings.NewReplacer("'", "&#39;").Replace(summary)) {
			t.Errorf("the page lacks the example %s", name)
		}
	}
}
