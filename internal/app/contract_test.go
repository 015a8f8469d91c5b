package app_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"
	"github.com/getkin/kin-openapi/routers/legacy"
)

// contract is a transport that holds every call of a test against the API document:
// each answer, and each request that was accepted. One that was refused is wrong in
// some way and is not judged.
type contract struct{ t testing.TB }

// maxJudged is how much of a request is kept to be judged, in bytes; a larger one is
// not judged.
const maxJudged = 4 << 20

func (c contract) RoundTrip(r *http.Request) (*http.Response, error) {
	var sent beginning
	if r.Body != nil {
		r = r.Clone(r.Context())
		r.Body = struct {
			io.Reader
			io.Closer
		}{io.TeeReader(r.Body, &sent), r.Body}
	}
	res, err := http.DefaultTransport.RoundTrip(r)
	if err != nil {
		return res, err
	}
	received, err := io.ReadAll(res.Body)
	_ = res.Body.Close()
	res.Body = io.NopCloser(io.MultiReader(bytes.NewReader(received), failure{err}))
	if err == nil && r.Method != http.MethodHead {
		if err := c.check(r, sent.bytes(), res, received); err != nil {
			c.t.Errorf("%s %s answered %d, against the API document: %v", r.Method, r.URL.RequestURI(), res.StatusCode, err)
		}
	}
	return res, nil
}

// beginning keeps what is written first. An answer may come while the request is
// still being sent.
type beginning struct {
	mu   sync.Mutex
	kept []byte
}

func (b *beginning) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.kept) <= maxJudged {
		b.kept = append(b.kept, p...)
	}
	return len(p), nil
}

func (b *beginning) bytes() []byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	return bytes.Clone(b.kept)
}

// failure is a reader that fails, or ends where there is no error.
type failure struct{ error }

func (f failure) Read([]byte) (int, error) {
	if f.error == nil {
		return 0, io.EOF
	}
	return 0, f.error
}

type apiDocument struct {
	*openapi3.T
	router routers.Router
}

var readDocument = sync.OnceValues(func() (*apiDocument, error) {
	text, err := os.ReadFile("../api/openapi.yaml")
	if err != nil {
		return nil, err
	}
	doc, err := openapi3.NewLoader().LoadFromData(text)
	if err != nil {
		return nil, err
	}
	doc.Servers = nil // so that paths are found whatever the address
	router, err := legacy.NewRouter(doc, openapi3.AllowExtensionsWithRef())
	if err != nil {
		return nil, err
	}
	plain := func(body io.Reader, _ http.Header, _ *openapi3.SchemaRef, _ openapi3filter.EncodingFn) (any, error) {
		text, err := io.ReadAll(body)
		return string(text), err
	}
	for _, media := range []string{"application/x-ndjson", "text/csv", "text/html", "application/yaml"} {
		openapi3filter.RegisterBodyDecoder(media, plain)
	}
	return &apiDocument{doc, router}, nil
})

func (c contract) check(r *http.Request, sent []byte, res *http.Response, received []byte) error {
	doc, err := readDocument()
	if err != nil {
		return err
	}
	route, parameters, err := doc.router.FindRoute(r)
	if err != nil { // nothing is there, and that is a problem
		return doc.Components.Schemas["Problem"].Value.VisitJSON(decoded(received))
	}
	media := mediaType(res.Header)
	response := route.Operation.Responses.Status(res.StatusCode)
	if response == nil {
		return errors.New("the document does not have this status")
	}
	options := &openapi3filter.Options{AuthenticationFunc: openapi3filter.NoopAuthenticationFunc, MultiError: true}
	request := &openapi3filter.RequestValidationInput{Request: r, PathParams: parameters, Route: route, Options: options}
	if res.StatusCode < 300 && len(sent) <= maxJudged {
		if err := doc.checkRequest(request, sent); err != nil {
			return fmt.Errorf("the request: %w", err)
		}
	}
	input := &openapi3filter.ResponseValidationInput{
		RequestValidationInput: request, Status: res.StatusCode, Header: res.Header, Options: options,
		Body: io.NopCloser(bytes.NewReader(received)),
	}
	if err := openapi3filter.ValidateResponse(context.Background(), input); err != nil {
		return err
	}
	if content := response.Value.Content.Get(media); content != nil {
		return doc.checkLines(content, received)
	}
	return nil
}

func (d *apiDocument) checkRequest(input *openapi3filter.RequestValidationInput, sent []byte) error {
	r := input.Request.Clone(context.Background())
	if r.Header.Get("Content-Encoding") == "gzip" {
		unzipped, err := gzip.NewReader(bytes.NewReader(sent))
		if err != nil {
			return err
		}
		if sent, err = io.ReadAll(unzipped); err != nil {
			return err
		}
	}
	r.Body = io.NopCloser(bytes.NewReader(sent))
	judged := *input
	judged.Request = r
	if err := openapi3filter.ValidateRequest(context.Background(), &judged); err != nil {
		return err
	}
	for name := range r.URL.Query() {
		if input.Route.Operation.Parameters.GetByInAndName(openapi3.ParameterInQuery, name) == nil {
			return fmt.Errorf("the document has no parameter %s", name)
		}
	}
	return nil
}

// checkLines checks a body whose lines are JSON, one by one. Lines of a request are
// not: one of them may be refused.
func (d *apiDocument) checkLines(content *openapi3.MediaType, text []byte) error {
	item, ok := content.Extensions["x-itemSchema"].(map[string]any)
	if !ok {
		return nil
	}
	ref, _ := item["$ref"].(string)
	schema := d.Components.Schemas[strings.TrimPrefix(ref, "#/components/schemas/")].Value
	for line := range bytes.Lines(text) {
		if err := schema.VisitJSON(decoded(line)); err != nil {
			return err
		}
	}
	return nil
}

// decoded is JSON as a value; what is no JSON is a text, which no schema takes.
func decoded(text []byte) any {
	var v any
	if json.Unmarshal(text, &v) != nil {
		return string(text)
	}
	return v
}

func mediaType(header http.Header) string {
	media, _, _ := strings.Cut(header.Get("Content-Type"), ";")
	return media
}

// Whatever can be asked for in a list is answered, as the document says.
func TestListParametersOfTheDocument(t *testing.T) {
	t.Parallel()
	b := newBank(t, fast)
	doc, err := readDocument()
	if err != nil {
		t.Fatal(err)
	}
	const lists = "/v1/issuers/{issuerId}/"
	for _, path := range []string{"orders", "order-batches"} {
		for _, p := range doc.Paths.Find(lists + path).Get.Parameters {
			values, ok := p.Value.Example.([]any)
			if !ok {
				values = []any{p.Value.Example}
			}
			for i, v := range values {
				values[i] = fmt.Sprint(v)
			}
			query := p.Value.Name + "=" + strings.ReplaceAll(strings.Trim(fmt.Sprint(values), "[]"), " ", ",")
			if a := b.do(http.MethodGet, strings.TrimSuffix(orders, "orders")+path+"?"+query, nil, nil); a.status != 200 {
				t.Errorf("%s?%s: %d %s", path, query, a.status, a.text)
			}
		}
	}
}
