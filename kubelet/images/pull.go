package images

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	criroom "github.com/keelson/keelson/kubelet/cri"
	"github.com/keelson/keelson/kubelet/metrics"
)

// Problem is why an image cannot be used: Reason is the waiting reason of the container
// (ErrImagePull, ErrImageNeverPull, InvalidImageName, ImageInspectError).
type Problem struct{ Reason, Message string }

func (p *Problem) Error() string { return p.Reason + ": " + p.Message }

// Puller brings images to the node. Parallel pulls of the whole node are bounded; those
// that wait are in no order.
type Puller struct {
	client cri.ImageServiceClient
	slots  chan struct{}
	counts *metrics.Metrics
}

// NewPuller starts nothing. parallel bounds the pulls under way at one time.
func NewPuller(c cri.ImageServiceClient, parallel int, counts *metrics.Metrics) *Puller {
	return &Puller{client: c, slots: make(chan struct{}, max(parallel, 1)), counts: counts}
}

// Want is one image as a container asks for it.
type Want struct {
	Image   string
	Policy  corev1.PullPolicy
	Handler string // runtime handler
	Sandbox *cri.PodSandboxConfig
	Secrets []*corev1.Secret // imagePullSecrets that were found
	// Event records an event on the container; typ is Normal or Warning.
	Event func(typ, reason, message string)
}

// Ensure makes the image present and returns it with the reference to create containers
// with. The error is a *Problem.
func (p *Puller) Ensure(ctx context.Context, w Want) (*cri.Image, *cri.ImageSpec, error) {
	name, err := WithTag(w.Image)
	if err != nil {
		message := fmt.Sprintf("Failed to apply default image tag %q: %v", w.Image, err)
		w.Event(corev1.EventTypeWarning, "InspectFailed", message)
		return nil, nil, &Problem{"InvalidImageName", message}
	}
	spec := &cri.ImageSpec{Image: name, RuntimeHandler: w.Handler}
	if w.Policy != corev1.PullAlways {
		have, err := p.inspect(ctx, spec)
		if err != nil {
			message := fmt.Sprintf("Failed to inspect image %q: %v", w.Image, criroom.Text(err))
			w.Event(corev1.EventTypeWarning, "InspectFailed", message)
			return nil, nil, &Problem{"ImageInspectError", message}
		}
		if have != nil {
			p.counts.ImageWanted(string(w.Policy), "true", false)
			w.Event(corev1.EventTypeNormal, "Pulled",
				fmt.Sprintf("Container image %q already present on machine and can be accessed by the pod", w.Image))
			return have, use(have, w), nil
		}
		p.counts.ImageWanted(string(w.Policy), "false", w.Policy != corev1.PullNever)
		if w.Policy == corev1.PullNever {
			message := fmt.Sprintf("Container image %q is not present with pull policy of Never", w.Image)
			w.Event(corev1.EventTypeWarning, "ErrImageNeverPull", message)
			return nil, nil, &Problem{"ErrImageNeverPull", message}
		}
	}
	if w.Policy == corev1.PullAlways {
		p.counts.ImageWanted(string(w.Policy), "unknown", true)
	}
	return p.pull(ctx, w, spec)
}

func (p *Puller) pull(ctx context.Context, w Want, spec *cri.ImageSpec) (*cri.Image, *cri.ImageSpec, error) {
	w.Event(corev1.EventTypeNormal, "Pulling", fmt.Sprintf("Pulling image %q", w.Image))
	asked := time.Now()
	select {
	case p.slots <- struct{}{}:
		defer func() { <-p.slots }()
	case <-ctx.Done():
		return nil, nil, &Problem{"ErrImagePull", context.Cause(ctx).Error()}
	}
	began := time.Now()
	auths := credentials(spec.Image, w.Secrets)
	if len(auths) == 0 {
		auths = []*cri.AuthConfig{nil}
	}
	var failed error
	for _, auth := range auths {
		answer, err := p.client.PullImage(ctx, &cri.PullImageRequest{Image: spec, Auth: auth, SandboxConfig: w.Sandbox})
		if err != nil {
			failed = err
			continue
		}
		have, err := p.inspect(ctx, &cri.ImageSpec{Image: answer.ImageRef, RuntimeHandler: w.Handler})
		if err == nil && have == nil {
			err = fmt.Errorf("image %q is not there after it was pulled", w.Image)
		}
		if err != nil {
			failed = err
			continue
		}
		p.counts.Pulled(have.Size, time.Since(began))
		w.Event(corev1.EventTypeNormal, "Pulled", fmt.Sprintf("Successfully pulled image %q in %v (%v including waiting). Image size: %d bytes.",
			w.Image, time.Since(began).Truncate(time.Millisecond), time.Since(asked).Truncate(time.Millisecond), have.Size))
		return have, use(have, w), nil
	}
	text := criroom.Text(failed)
	w.Event(corev1.EventTypeWarning, "Failed", fmt.Sprintf("Failed to pull image %q: %v", w.Image, failed))
	for _, known := range []struct{ reason, words string }{
		{"RegistryUnavailable", "image pull failed for %s because the registry is unavailable%s"},
		{"SignatureValidationFailed", "image pull failed for %s because the signature validation failed%s"},
	} {
		if rest, ok := strings.CutPrefix(text, known.reason); ok {
			return nil, nil, &Problem{known.reason, fmt.Sprintf(known.words, w.Image, rest)}
		}
	}
	return nil, nil, &Problem{"ErrImagePull", failed.Error()}
}

func (p *Puller) inspect(ctx context.Context, spec *cri.ImageSpec) (*cri.Image, error) {
	answer, err := p.client.ImageStatus(ctx, &cri.ImageStatusRequest{Image: spec})
	if err != nil {
		return nil, err
	}
	return answer.Image, nil
}

// use names the image by what was found, so that a tag that moves cannot change what is
// run between the check and the creation.
func use(have *cri.Image, w Want) *cri.ImageSpec {
	return &cri.ImageSpec{Image: have.Id, UserSpecifiedImage: w.Image, RuntimeHandler: w.Handler}
}

// reference is the grammar of image names. Source: distribution/reference.
var reference = regexp.MustCompile(`^((?:[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?(?:\.[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?)*|\[[a-fA-F0-9:]+\])(?::[0-9]+)?/)?` +
	`([a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*)*)` +
	`(:[\w][\w.-]{0,127})?(@[A-Za-z][A-Za-z0-9]*(?:[-_+.][A-Za-z][A-Za-z0-9]*)*:[0-9a-fA-F]{32,})?$`)

// WithTag adds ":latest" to a name that has neither tag nor digest.
func WithTag(image string) (string, error) {
	m := reference.FindStringSubmatch(image)
	if m == nil {
		return "", fmt.Errorf("couldn't parse image name %q: invalid reference format", image)
	}
	if m[3] == "" && m[4] == "" {
		return image + ":latest", nil
	}
	return image, nil
}

// credentials are the logins of the secrets that fit the image, most specific first.
func credentials(image string, secrets []*corev1.Secret) []*cri.AuthConfig {
	type login struct {
		Username, Password, Auth, IdentityToken, RegistryToken string
	}
	target := normalize(image)
	best := map[int][]*cri.AuthConfig{}
	longest := 0
	for _, s := range secrets {
		var logins map[string]login
		switch {
		case len(s.Data[corev1.DockerConfigJsonKey]) > 0:
			var file struct{ Auths map[string]login }
			if json.Unmarshal(s.Data[corev1.DockerConfigJsonKey], &file) != nil {
				continue
			}
			logins = file.Auths
		case len(s.Data[corev1.DockerConfigKey]) > 0:
			if json.Unmarshal(s.Data[corev1.DockerConfigKey], &logins) != nil {
				continue
			}
		}
		for key, l := range logins {
			n := fits(key, target)
			if n == 0 {
				continue
			}
			if l.Username == "" && l.Auth != "" {
				if raw, err := base64.StdEncoding.DecodeString(l.Auth); err == nil {
					l.Username, l.Password, _ = strings.Cut(strings.TrimSpace(string(raw)), ":")
				}
			}
			best[n] = append(best[n], &cri.AuthConfig{Username: l.Username, Password: l.Password,
				IdentityToken: l.IdentityToken, RegistryToken: l.RegistryToken})
			longest = max(longest, n)
		}
	}
	var out []*cri.AuthConfig
	for n := longest; n > 0; n-- {
		out = append(out, best[n]...)
	}
	return out
}

// normalize gives a name its registry: docker.io, and library/ there, when it has none.
func normalize(image string) string {
	first, _, slash := strings.Cut(image, "/")
	if !slash {
		return "docker.io/library/" + image
	}
	if !strings.ContainsAny(first, ".:") && first != "localhost" {
		return "docker.io/" + image
	}
	return image
}

// fits is how many bytes of the image's name the key of a login covers; 0: none. "*" in the
// key's host stands for one part of a host name.
func fits(key, image string) int {
	key = strings.TrimSuffix(strings.TrimPrefix(strings.TrimPrefix(key, "https://"), "http://"), "/")
	if key == "index.docker.io/v1" || key == "index.docker.io" {
		key = "docker.io"
	}
	key = strings.TrimSuffix(strings.TrimSuffix(key, "/v1"), "/v2")
	keyHost, keyPath, _ := strings.Cut(key, "/")
	host, path, _ := strings.Cut(image, "/")
	want, have := strings.Split(keyHost, "."), strings.Split(host, ".")
	if len(want) != len(have) {
		return 0
	}
	for i := range want {
		if want[i] != "*" && want[i] != have[i] {
			return 0
		}
	}
	if !strings.HasPrefix(path, keyPath) {
		return 0
	}
	return len(key)
}
