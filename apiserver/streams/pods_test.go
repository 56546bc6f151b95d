package streams

import (
	"net/url"
	"testing"
)

// Source: what a Kubernetes 1.36 API server answered to the same parameters.
func TestLogParameters(t *testing.T) {
	for in, want := range map[string]string{
		"follow=x&timestamps=&previous=False": "follow=true&timestamps=true", // everything is true but "false" and "0"
		"tailLines=0&limitBytes=1":            "limitBytes=1&tailLines=0",
		"tailLines=-1":                        "tailLines: Invalid value: -1: must be greater than or equal to 0",
		"limitBytes=0":                        "limitBytes: Invalid value: 0: must be greater than 0",
		"tailLines=":                          `strconv.ParseInt: parsing "": invalid syntax`,
		"sinceSeconds=x":                      `strconv.ParseInt: parsing "x": invalid syntax`,
		"sinceTime=bad":                       `parsing time "bad" as "2006-01-02T15:04:05Z07:00": cannot parse "bad" as "2006"`,
	} {
		values, err := url.ParseQuery(in)
		if err != nil {
			t.Fatal(err)
		}
		q, errs, err := logQuery(values)
		got := q.Encode()
		switch {
		case err != nil:
			got = err.Error()
		case len(errs) > 0:
			got = errs.ToAggregate().Error()
		}
		if got != want {
			t.Errorf("%s: got %q, want %q", in, got, want)
		}
	}
}
