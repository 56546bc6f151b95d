package rest

import (
	"net/http/httptest"
	"testing"
)

func TestParseInfo(t *testing.T) {
	for _, c := range []struct{ method, url, want string }{
		{"GET", "/api/v1/namespaces", "list //v1/namespaces ns= name="},
		{"GET", "/api/v1/namespaces/x", "get //v1/namespaces ns=x name=x"},
		{"PUT", "/api/v1/namespaces/x/finalize", "update //v1/namespaces/finalize ns=x name=x"},
		{"GET", "/api/v1/namespaces/x/pods", "list //v1/pods ns=x name="},
		{"GET", "/api/v1/namespaces/x/status/y", "get //v1/status ns=x name=y"},
		{"GET", "/api/v1/pods?watch=1", "watch //v1/pods ns= name="},
		{"GET", "/api/v1/pods?watch=false", "list //v1/pods ns= name="},
		{"GET", "/api/v1/pods?fieldSelector=metadata.name%3Dweb", "list //v1/pods ns= name=web"},
		{"GET", "/api/v1/watch/namespaces/x/pods/web", "watch //v1/pods ns=x name=web"},
		{"GET", "/api/v1/namespaces/x/pods/web?watch=true", "get //v1/pods ns=x name=web"},
		{"DELETE", "/apis/apps/v1/namespaces/x/deployments", "deletecollection /apps/v1/deployments ns=x name="},
		{"PATCH", "/apis/apps/v1/namespaces/x/deployments/d/scale", "patch /apps/v1/deployments/scale ns=x name=d"},
		{"POST", "/api/v1/namespaces/x/pods/web/proxy/a/b/", "create //v1/pods/proxy ns=x name=web rest=a/b/"},
		{"GET", "/apis/apps/v1", "get path=/apis/apps/v1"},
		{"GET", "/api", "get path=/api"},
		{"GET", "/healthz", "get path=/healthz"},
		{"GET", "/api/v1/watch", "get path=/api/v1/watch"},
		{"GET", "//", "get path=//"},
		{"OPTIONS", "/api/v1/pods", " //v1/pods ns= name="},
	} {
		in := ParseInfo(httptest.NewRequest(c.method, c.url, nil))
		got := in.Verb + " path=" + in.Path
		if in.Resource {
			got = in.Verb + " /" + in.Group + "/" + in.Version + "/" + in.Plural
			if in.Subresource != "" {
				got += "/" + in.Subresource
			}
			got += " ns=" + in.Namespace + " name=" + in.Name
			if in.Rest != "" {
				got += " rest=" + in.Rest
			}
		}
		if got != c.want {
			t.Errorf("%s %s:\n got %s\nwant %s", c.method, c.url, got, c.want)
		}
	}
}

func TestDryRunOfRequests(t *testing.T) {
	for query, want := range map[string]string{
		"": "", "?dryRun=All": "All", "?dryRun=All&dryRun=All": "All", "?dryRun=": "invalid", "?dryRun=all": "invalid", "?notdryRun=All": "",
	} {
		if got := ParseInfo(httptest.NewRequest("POST", "/api/v1/namespaces/x/pods"+query, nil)).DryRun; got != want {
			t.Errorf("%q: %q, want %q", query, got, want)
		}
	}
}
