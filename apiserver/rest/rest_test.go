package rest

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/yaml"

	"github.com/keelson/keelson/apiserver/admission"
	"github.com/keelson/keelson/apiserver/resources"
	"github.com/keelson/keelson/apiserver/store/memory"
	"github.com/keelson/keelson/apiserver/watchcache"
)

// harness is a Server over the memory store, asked through HTTP.
type harness struct {
	counts *prometheus.Registry
	t      testing.TB
	reg    *resources.Registry
	srv    *httptest.Server
}

func newHarness(t testing.TB, chain ...admission.Plugin) *harness {
	t.Helper()
	reg, err := resources.NewRegistry(resources.Table())
	if err != nil {
		t.Fatal(err)
	}
	st := memory.New()
	cache := watchcache.New(st, reg, watchcache.Options{})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = cache.Run(ctx) }()
	<-cache.Ready()
	counts := prometheus.NewRegistry()
	h := &harness{t: t, reg: reg, counts: counts, srv: httptest.NewServer(New(Config{Registry: reg, Cache: cache, Store: st, Admission: chain, Version: "v1.36.6+test",
		Metrics:  NewMetrics(counts),
		Observed: map[schema.GroupResource]Observe{{Resource: "componentstatuses"}: twoComponents},
		Virtual:  map[schema.GroupResource]func(*resources.Request, resources.Object) (resources.Object, error){}}))}
	t.Cleanup(func() {
		h.srv.CloseClientConnections()
		h.srv.Close()
		cancel()
		<-done
	})
	return h
}

type reply struct {
	code   int
	body   []byte
	header http.Header
}

func (r reply) object(t testing.TB) map[string]any {
	t.Helper()
	m := map[string]any{}
	if err := json.Unmarshal(r.body, &m); err != nil {
		t.Fatalf("answer %d is not JSON: %v: %.300s", r.code, err, r.body)
	}
	return m
}

func (r reply) status(t testing.TB) metav1.Status {
	t.Helper()
	var s metav1.Status
	if err := json.Unmarshal(r.body, &s); err != nil || s.Kind != "Status" {
		t.Fatalf("answer %d is no Status: %.300s", r.code, r.body)
	}
	return s
}

func (h *harness) do(method, path, body string, headers ...string) reply {
	h.t.Helper()
	req, err := http.NewRequest(method, h.srv.URL+path, strings.NewReader(body))
	if err != nil {
		h.t.Fatal(err)
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	req.Header.Set("User-Agent", "tester/1")
	for i := 0; i+1 < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		h.t.Fatal(err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		h.t.Fatal(err)
	}
	return reply{res.StatusCode, text, res.Header}
}

// must is do with a code that is expected.
func (h *harness) must(code int, method, path, body string, headers ...string) reply {
	h.t.Helper()
	r := h.do(method, path, body, headers...)
	if r.code != code {
		h.t.Fatalf("%s %s: got %d, want %d: %.600s", method, path, r.code, code, r.body)
	}
	return r
}

const template = `{"metadata":{"labels":{"a":"b"}},"spec":{"containers":[{"name":"c","image":"i"}]}}`

// samples are the smallest valid objects of kinds that need more than metadata, by "group/Kind".
var samples = map[string]string{
	"/Endpoints":                          `"subsets":[]`,
	"/Event":                              `"involvedObject":{"namespace":"default","kind":"Pod","name":"p"},"reason":"r","message":"m"`,
	"events.k8s.io/Event":                 `"regarding":{"namespace":"default","kind":"Pod","name":"p"},"reason":"r","action":"a","type":"Normal","eventTime":"2024-01-01T00:00:00.000000Z","reportingController":"x.io/y","reportingInstance":"i"`,
	"/PersistentVolumeClaim":              `"spec":{"accessModes":["ReadWriteOnce"],"resources":{"requests":{"storage":"1Gi"}}}`,
	"/PersistentVolume":                   `"spec":{"capacity":{"storage":"1Gi"},"accessModes":["ReadWriteOnce"],"hostPath":{"path":"/x"}}`,
	"/Pod":                                `"spec":{"containers":[{"name":"c","image":"i"}]}`,
	"/PodTemplate":                        `"template":` + template,
	"/ReplicationController":              `"spec":{"selector":{"a":"b"},"template":` + template + `}`,
	"/Service":                            `"spec":{"ports":[{"port":80}]}`,
	"apps/ControllerRevision":             `"revision":1,"data":{"a":"b"}`,
	"apps/DaemonSet":                      `"spec":{"selector":{"matchLabels":{"a":"b"}},"template":` + template + `}`,
	"apps/Deployment":                     `"spec":{"selector":{"matchLabels":{"a":"b"}},"template":` + template + `}`,
	"apps/ReplicaSet":                     `"spec":{"selector":{"matchLabels":{"a":"b"}},"template":` + template + `}`,
	"apps/StatefulSet":                    `"spec":{"serviceName":"s","selector":{"matchLabels":{"a":"b"}},"template":` + template + `}`,
	"autoscaling/HorizontalPodAutoscaler": `"spec":{"scaleTargetRef":{"kind":"Deployment","name":"d","apiVersion":"apps/v1"},"maxReplicas":3}`,
	"batch/CronJob":                       `"spec":{"schedule":"* * * * *","jobTemplate":{"spec":{"template":{"spec":{"restartPolicy":"Never","containers":[{"name":"c","image":"i"}]}}}}}`,
	"batch/Job":                           `"spec":{"template":{"spec":{"restartPolicy":"Never","containers":[{"name":"c","image":"i"}]}}}`,
	"certificates.k8s.io/CertificateSigningRequest":                 `"spec":{"signerName":"example.com/x","usages":["client auth"],"request":"` + csr + `"}`,
	"coordination.k8s.io/Lease":                                     `"spec":{"holderIdentity":"h"}`,
	"discovery.k8s.io/EndpointSlice":                                `"addressType":"IPv4","endpoints":[]`,
	"networking.k8s.io/IngressClass":                                `"spec":{"controller":"x.io/y"}`,
	"networking.k8s.io/Ingress":                                     `"spec":{"defaultBackend":{"service":{"name":"s","port":{"number":80}}}}`,
	"networking.k8s.io/IPAddress":                                   `"spec":{"parentRef":{"resource":"services","name":"s","namespace":"default"}}`,
	"networking.k8s.io/ServiceCIDR":                                 `"spec":{"cidrs":["10.0.0.0/24"]}`,
	"node.k8s.io/RuntimeClass":                                      `"handler":"h"`,
	"rbac.authorization.k8s.io/ClusterRoleBinding":                  `"roleRef":{"apiGroup":"rbac.authorization.k8s.io","kind":"ClusterRole","name":"x"}`,
	"rbac.authorization.k8s.io/RoleBinding":                         `"roleRef":{"apiGroup":"rbac.authorization.k8s.io","kind":"Role","name":"x"}`,
	"scheduling.k8s.io/PriorityClass":                               `"value":5`,
	"storage.k8s.io/CSINode":                                        `"spec":{"drivers":[]}`,
	"storage.k8s.io/CSIStorageCapacity":                             `"storageClassName":"c"`,
	"storage.k8s.io/StorageClass":                                   `"provisioner":"x.io/y"`,
	"storage.k8s.io/VolumeAttachment":                               `"spec":{"attacher":"a","nodeName":"n","source":{"persistentVolumeName":"v"}}`,
	"storage.k8s.io/VolumeAttributesClass":                          `"driverName":"d.io","parameters":{"a":"b"}`,
	"apiextensions.k8s.io/CustomResourceDefinition":                 `"spec":{"group":"x.io","scope":"Namespaced","names":{"plural":"walks","kind":"Walk"},"versions":[{"name":"v1","served":true,"storage":true,"schema":{"openAPIV3Schema":{"type":"object"}}}]}`,
	"flowcontrol.apiserver.k8s.io/FlowSchema":                       `"spec":{"priorityLevelConfiguration":{"name":"x"},"matchingPrecedence":9000,"distinguisherMethod":{"type":"ByUser"}}`,
	"flowcontrol.apiserver.k8s.io/PriorityLevelConfiguration":       `"spec":{"type":"Limited","limited":{"nominalConcurrencyShares":5,"limitResponse":{"type":"Reject"}}}`,
	"admissionregistration.k8s.io/ValidatingAdmissionPolicy":        `"spec":{"matchConstraints":{"resourceRules":[{"apiGroups":["apps"],"apiVersions":["v1"],"operations":["CREATE"],"resources":["deployments"]}]},"validations":[{"expression":"true"}]}`,
	"admissionregistration.k8s.io/ValidatingAdmissionPolicyBinding": `"spec":{"policyName":"p","validationActions":["Deny"]}`,
	"admissionregistration.k8s.io/MutatingAdmissionPolicy":          `"spec":{"reinvocationPolicy":"Never","matchConstraints":{"resourceRules":[{"apiGroups":["apps"],"apiVersions":["v1"],"operations":["CREATE"],"resources":["deployments"]}]},"mutations":[{"patchType":"ApplyConfiguration","applyConfiguration":{"expression":"Object{}"}}]}`,
	"admissionregistration.k8s.io/MutatingAdmissionPolicyBinding":   `"spec":{"policyName":"p"}`,
	"apiregistration.k8s.io/APIService":                             `"spec":{"group":"walk.x.io","version":"v1","groupPriorityMinimum":1000,"versionPriority":10,"insecureSkipTLSVerify":true,"service":{"namespace":"default","name":"w"}}`,
	"resource.k8s.io/ResourceSlice":                                 `"spec":{"driver":"d.io","nodeName":"n","pool":{"name":"p","generation":1,"resourceSliceCount":1}}`,
}

// names of kinds whose names must have a form of their own.
var sampleNames = map[string]string{
	"networking.k8s.io/IPAddress":                   "10.1.2.3",
	"apiextensions.k8s.io/CustomResourceDefinition": "walks.x.io",
	"storage.k8s.io/CSIDriver":                      "walk.x.io",
	"apiregistration.k8s.io/APIService":             "v1.walk.x.io",
}

func sample(row *resources.Row) (name, body string) {
	key := row.Group + "/" + row.Kind
	name = "walk"
	if n := sampleNames[key]; n != "" {
		name = n
	}
	body = fmt.Sprintf(`{"apiVersion":%q,"kind":%q,"metadata":{"name":%q,"labels":{"w":"1"}}`, row.GVK().GroupVersion().String(), row.Kind, name)
	if s := samples[key]; s != "" {
		body += "," + s
	}
	return name, body + "}"
}

// TestEveryRowThroughEveryVerb walks the resource table.
func TestEveryRowThroughEveryVerb(t *testing.T) {
	h := newHarness(t)
	for _, row := range h.reg.All() {
		if !row.Can("create") || !row.Can("get") {
			continue
		}
		t.Run(row.GVR().String(), func(t *testing.T) {
			h := &harness{counts: h.counts, t: t, reg: h.reg, srv: h.srv}
			root := "/api/" + row.Version
			if row.Group != "" {
				root = "/apis/" + row.Group + "/" + row.Version
			}
			all := root + "/" + row.Plural
			if row.Namespaced {
				root += "/namespaces/default"
			}
			root += "/" + row.Plural
			name, body := sample(row)
			one := root + "/" + name

			before := h.must(200, "GET", root, "").object(t)["metadata"].(map[string]any)["resourceVersion"].(string)
			h.must(404, "GET", one, "")
			h.must(201, "POST", root+"?dryRun=All", body)
			h.must(404, "GET", one, "")
			made := h.must(201, "POST", root, body).object(t)
			if made["kind"] != row.Kind || made["apiVersion"] != row.GVK().GroupVersion().String() {
				t.Errorf("created as %v %v", made["apiVersion"], made["kind"])
			}
			meta := made["metadata"].(map[string]any)
			if meta["uid"] == nil || meta["creationTimestamp"] == nil || meta["resourceVersion"] == nil || meta["managedFields"] == nil {
				t.Errorf("metadata is not complete: %v", meta)
			}
			if st := h.must(409, "POST", root, body).status(t); st.Reason != metav1.StatusReasonAlreadyExists {
				t.Errorf("second create: %s", st.Reason)
			}
			got := h.must(200, "GET", one, "")
			if pb := h.must(200, "GET", one, "", "Accept", "application/vnd.kubernetes.protobuf"); !bytes.HasPrefix(pb.body, []byte("k8s\x00")) {
				t.Errorf("protobuf: %q", pb.body[:min(20, len(pb.body))])
			} else {
				// What was read as protobuf can be written as protobuf.
				h.must(200, "PUT", one, string(pb.body), "Content-Type", "application/vnd.kubernetes.protobuf")
			}
			h.must(200, "GET", one, "", "Accept", "application/yaml")
			h.must(200, "PUT", one, string(got.body))
			after := h.must(200, "GET", one, "").object(t)["metadata"].(map[string]any)["resourceVersion"]
			if after != meta["resourceVersion"] {
				t.Errorf("an update that changes nothing was written: %v, was %v", after, meta["resourceVersion"])
			}
			for kind, patch := range map[string]string{
				"application/merge-patch+json":           `{"metadata":{"annotations":{"m":"1"}}}`,
				"application/strategic-merge-patch+json": `{"metadata":{"annotations":{"s":"1"}}}`,
				"application/json-patch+json":            `[{"op":"add","path":"/metadata/labels/j","value":"1"}]`,
			} {
				h.must(200, "PATCH", one, patch, "Content-Type", kind)
			}
			apply := fmt.Sprintf("apiVersion: %s\nkind: %s\nmetadata:\n  name: %s\n  labels: {applied: \"1\"}\n", row.GVK().GroupVersion(), row.Kind, name)
			applied := h.must(200, "PATCH", one+"?fieldManager=applier", apply, "Content-Type", "application/apply-patch+yaml").object(t)
			if l := applied["metadata"].(map[string]any)["labels"].(map[string]any); l["applied"] != "1" || l["j"] != "1" || l["w"] != "1" {
				t.Errorf("labels after apply: %v", l)
			}
			for part := range row.Parts {
				if part == "finalize" {
					continue // it is only written
				}
				h.must(200, "GET", one+"/"+part, "")
			}
			if row.Parts["status"].Prepare != nil {
				h.must(200, "PATCH", one+"/status", `{"metadata":{"labels":{"st":"1"}}}`, "Content-Type", "application/merge-patch+json")
			}

			table := h.must(200, "GET", root, "", "Accept", "application/json;as=Table;v=v1;g=meta.k8s.io,application/json")
			var tab metav1.Table
			if err := json.Unmarshal(table.body, &tab); err != nil || len(tab.Rows) != 1 || len(tab.Rows[0].Cells) != len(tab.ColumnDefinitions) {
				t.Errorf("table: %v: %.300s", err, table.body)
			}
			partialOne := h.must(200, "GET", one, "", "Accept", "application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io").object(t)
			if partialOne["kind"] != "PartialObjectMetadata" || partialOne["spec"] != nil {
				t.Errorf("metadata: %v", partialOne)
			}
			h.must(200, "GET", root, "", "Accept", "application/vnd.kubernetes.protobuf;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io")
			var list struct {
				Kind  string
				Items []map[string]any
			}
			for _, path := range []string{root, all, root + "?labelSelector=w%3D1", root + "?fieldSelector=metadata.name%3D" + name, root + "?resourceVersion=0"} {
				if err := json.Unmarshal(h.must(200, "GET", path, "").body, &list); err != nil || len(list.Items) != 1 || list.Kind != row.ListKind {
					t.Errorf("GET %s: %v, %d items of %s", path, err, len(list.Items), list.Kind)
				}
			}
			events := h.watch(root+"?watch=1&timeoutSeconds=1&resourceVersion="+before, 1)
			if len(events) == 0 || events[0] != "ADDED" {
				t.Errorf("events: %v", events)
			}
			h.must(200, "DELETE", one+"?gracePeriodSeconds=0&propagationPolicy=Background", "")
			if row.Kind == "Namespace" {
				left := h.must(200, "GET", one, "").object(t)
				if left["status"].(map[string]any)["phase"] != "Terminating" {
					t.Errorf("a deleted namespace is %v", left["status"])
				}
				left["spec"] = map[string]any{}
				raw, _ := json.Marshal(left)
				h.must(200, "PUT", one+"/finalize", string(raw))
				h.must(404, "GET", one, "")
			}
			if row.Kind == "CustomResourceDefinition" { // held until its objects are gone, which its keeper would see to
				h.must(200, "PATCH", one, `{"metadata":{"finalizers":null}}`, "Content-Type", "application/merge-patch+json")
				h.must(404, "GET", one, "")
			}
			h.must(201, "POST", root, body)
			if row.Can("deletecollection") {
				h.must(200, "DELETE", root+"?gracePeriodSeconds=0&propagationPolicy=Background", "")
				if err := json.Unmarshal(h.must(200, "GET", root, "").body, &list); err != nil || len(list.Items) != 0 {
					for _, it := range list.Items {
						t.Logf("left: %v", it["metadata"])
					}
					if len(list.Items) > 0 && list.Items[0]["metadata"].(map[string]any)["finalizers"] == nil {
						t.Errorf("after deletecollection %d are left", len(list.Items))
					}
				}
			}
			h.must(405, "POST", one, body)
		})
	}
}

// watch reads at least n events, or until the watch ends, and returns their types.
func (h *harness) watch(path string, n int) []string {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	req, _ := http.NewRequestWithContext(ctx, "GET", h.srv.URL+path, nil)
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		h.t.Fatal(err)
	}
	defer res.Body.Close()
	if res.StatusCode != 200 {
		text, _ := io.ReadAll(res.Body)
		h.t.Fatalf("GET %s: %d: %s", path, res.StatusCode, text)
	}
	var types []string
	dec := json.NewDecoder(res.Body)
	for len(types) < n {
		var e metav1.WatchEvent
		if err := dec.Decode(&e); err != nil {
			break
		}
		types = append(types, e.Type)
	}
	return types
}

// csr is a certificate request made for this test.
var csr = func() string {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		panic(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "walk"}}, key)
	if err != nil {
		panic(err)
	}
	return base64.StdEncoding.EncodeToString(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
}()

// kubectl get flowschemas prints them in the order in which they are asked, as upstream does; lists of the
// objects themselves stay in the order of names.
func TestRowsInTheKindsOwnOrder(t *testing.T) {
	h := newHarness(t)
	const root = "/apis/flowcontrol.apiserver.k8s.io/v1/flowschemas"
	for name, precedence := range map[string]int{"a": 900, "b": 20, "c": 900, "d": 7} {
		h.must(201, "POST", root, fmt.Sprintf(`{"metadata":{"name":%q},"spec":{"priorityLevelConfiguration":{"name":"x"},"matchingPrecedence":%d}}`, name, precedence))
	}
	var names, rows []string
	for _, it := range h.must(200, "GET", root, "").object(t)["items"].([]any) {
		names = append(names, it.(map[string]any)["metadata"].(map[string]any)["name"].(string))
	}
	for _, accept := range []string{"application/json;as=Table;v=v1;g=meta.k8s.io", "application/yaml;as=Table;v=v1;g=meta.k8s.io"} {
		var table metav1.Table
		if err := yaml.Unmarshal(h.must(200, "GET", root, "", "Accept", accept).body, &table); err != nil {
			t.Fatal(err)
		}
		for _, r := range table.Rows {
			rows = append(rows, r.Cells[0].(string))
		}
	}
	if got := strings.Join(names, " ") + ", " + strings.Join(rows, " "); got != "a b c d, d b a c d b a c" {
		t.Error(got)
	}
}
